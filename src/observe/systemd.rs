//! What systemd is told (`sd_notify(3)`), by a thread of its own: a notification is a datagram on a socket that may
//! not take it, and nothing here waits for that.

use super::events::{self, Event as _};
use sd_notify::NotifyState;
use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Once, OnceLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
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

/// Names the socket that is listened at: a path, or after `@` the name of an abstract socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// How much may wait while systemd does not listen; then news are dropped.
const WAITING: usize = 16;

/// Whether the news were taken. They are never waited for; without systemd (no `NOTIFY_SOCKET`) they go nowhere.
pub fn tell(news: News) -> bool {
    static TELLER: OnceLock<SyncSender<News>> = OnceLock::new();
    let told = TELLER.get_or_init(teller).try_send(news);
    if matches!(told, Err(TrySendError::Full(_))) {
        failed("its socket is full");
    }
    told.is_ok()
}

/// A notification that is lost is no reason to stop crediting; one line says why systemd may know nothing.
fn failed(error: &str) {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| events::NotNotified { error }.emit());
}

fn teller() -> SyncSender<News> {
    let (sender, receiver) = sync_channel(WAITING);
    let socket = std::env::var_os(SOCKET_VARIABLE);
    std::thread::spawn(move || {
        // Lost, it would leave the unit starting for ever: it goes with the next news.
        let mut ready_is_lost = false;
        for news in receiver {
            let Some(socket) = &socket else { continue };
            let mut text = datagram(&news);
            if ready_is_lost {
                text.push_str(&datagram(&News::Ready));
            }
            let sent = send(socket, &text);
            ready_is_lost = sent.is_err() && (ready_is_lost || news == News::Ready);
            if let Err(error) = sent {
                failed(&error.to_string());
            }
        }
    });
    sender
}

fn datagram(news: &News) -> String {
    let state = match news {
        News::Status(text) => NotifyState::Status(text),
        News::Ready => NotifyState::Ready,
        News::Stopping => NotifyState::Stopping,
        News::Alive => NotifyState::Watchdog,
    };
    format!("{state}\n")
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    // A datagram goes whole or not at all.
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_sent_to_and_anything_else_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("pointsd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let cases = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path)),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&address)),
        ];
        for (socket, receiver) in cases {
            for (news, text) in [
                (News::Ready, "READY=1\n"),
                (News::Alive, "WATCHDOG=1\n"),
                (News::Stopping, "STOPPING=1\n"),
                (News::Status("consuming".into()), "STATUS=consuming\n"),
            ] {
                send(&socket, &datagram(&news)).unwrap();
                let mut buffer = [0; 100];
                let length = receiver.as_ref().unwrap().recv(&mut buffer).unwrap();
                assert_eq!(String::from_utf8_lossy(&buffer[..length]), text, "{socket:?}");
            }
        }
        for socket in ["@pointsd-test-nobody-listens", "/nonexistent/notify", "vsock:2:1"] {
            assert!(send(socket.as_ref(), "READY=1\n").is_err(), "{socket}");
        }
    }
}
