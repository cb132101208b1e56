//! What systemd is told (`sd_notify(3)`), by a thread of its own: a notification is a datagram on a socket that may
//! not take it, and nothing here waits for that.

use sd_notify::NotifyState;
use std::sync::{
    OnceLock,
    mpsc::{SyncSender, sync_channel},
};

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A line for `systemctl status`.
    Status(String),
    /// The start is complete.
    Ready,
    /// The daemon leaves.
    Stopping,
    /// Every loop turns.
    Alive,
}

/// How much may wait while systemd does not listen; then news are dropped.
const WAITING: usize = 16;

/// Whether the news were taken. They are never waited for; without systemd (no `NOTIFY_SOCKET`) they go nowhere.
pub fn tell(news: News) -> bool {
    static TELLER: OnceLock<SyncSender<News>> = OnceLock::new();
    TELLER.get_or_init(teller).try_send(news).is_ok()
}

fn teller() -> SyncSender<News> {
    let (sender, receiver) = sync_channel(WAITING);
    std::thread::spawn(move || {
        for news in receiver {
            let state = match &news {
                News::Status(text) => NotifyState::Status(text),
                News::Ready => NotifyState::Ready,
                News::Stopping => NotifyState::Stopping,
                News::Alive => NotifyState::Watchdog,
            };
            // A socket that refuses it is no reason to stop crediting.
            let _ = sd_notify::notify(&[state]);
        }
    });
    sender
}
