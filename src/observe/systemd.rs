//! Notifications to systemd (`sd_notify(3)`), sent by a thread of their own.
//!
//! A notification is a datagram on a socket that may be full. Only the thread waits for the socket.

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

/// A notification to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A line for `systemctl status`.
    Status(String),
    /// The daemon has started completely.
    Ready,
    /// The daemon is stopping.
    Stopping,
    /// No task is stalled: the ping of the watchdog.
    Watchdog,
}

/// The environment variable with the socket of systemd: a path, or `@` and the name of an abstract socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The number of notifications that wait while systemd does not read them. Further ones are dropped.
const QUEUE_LENGTH: usize = 16;

/// Queues a notification without waiting, and returns whether the queue took it. Without systemd (no `NOTIFY_SOCKET`) the
/// notification is discarded.
pub fn notify(notice: Notice) -> bool {
    static SENDER: OnceLock<SyncSender<Notice>> = OnceLock::new();
    let queued = SENDER.get_or_init(start_sender).try_send(notice);
    if matches!(queued, Err(TrySendError::Full(_))) {
        log_once("its socket is full");
    }
    queued.is_ok()
}

/// Logs the first failure only: pointsd continues to credit without systemd.
fn log_once(error: &str) {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| events::NotNotified { error }.emit());
}

/// Starts the thread that sends the notifications.
fn start_sender() -> SyncSender<Notice> {
    let (sender, receiver) = sync_channel(QUEUE_LENGTH);
    let socket = std::env::var_os(SOCKET_VARIABLE);
    std::thread::spawn(move || {
        // Without READY the unit would stay in the state "activating": a lost one is sent with the next notification.
        let mut ready_is_lost = false;
        for notice in receiver {
            let Some(socket) = &socket else { continue };
            let mut text = datagram(&notice);
            if ready_is_lost {
                text.push_str(&datagram(&Notice::Ready));
            }
            let sent = send(socket, &text);
            ready_is_lost = sent.is_err() && (ready_is_lost || notice == Notice::Ready);
            if let Err(error) = sent {
                log_once(&error.to_string());
            }
        }
    });
    sender
}

fn datagram(notice: &Notice) -> String {
    let state = match notice {
        Notice::Status(text) => NotifyState::Status(text),
        Notice::Ready => NotifyState::Ready,
        Notice::Stopping => NotifyState::Stopping,
        Notice::Watchdog => NotifyState::Watchdog,
    };
    format!("{state}\n")
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    // A datagram is sent whole or not at all.
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
            for (notice, text) in [
                (Notice::Ready, "READY=1\n"),
                (Notice::Watchdog, "WATCHDOG=1\n"),
                (Notice::Stopping, "STOPPING=1\n"),
                (Notice::Status("consuming".into()), "STATUS=consuming\n"),
            ] {
                send(&socket, &datagram(&notice)).unwrap();
                let mut buffer = [0; 100];
                let length = receiver.as_ref().unwrap().recv(&mut buffer).unwrap();
                assert_eq!(String::from_utf8_lossy(&buffer[..length]), text, "{socket:?}");
            }
        }
        for socket in ["@pointsd-test-no-listener", "/nonexistent/notify", "vsock:2:1"] {
            assert!(send(socket.as_ref(), "READY=1\n").is_err(), "{socket}");
        }
    }
}
