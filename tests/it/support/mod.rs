//! Real servers, the real daemon, and a foreign AMQP client: what the integration tests stand on.

pub mod amqp;
pub mod daemon;
pub mod flow;
pub mod gateway;
pub mod ledger;
pub mod payments;
pub mod postgres;
pub mod proxy;
pub mod rabbit;
pub mod tls;

use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long anything may take that must happen at all. Generous: it is only reached by a failure.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `check` gives a value.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// A port that is free now, and below those that the kernel gives to connections (32768 and up): a server that is started
/// again finds its port as it left it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 101;
        let port = 20_000 + u16::try_from(step % 12_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The first of these programs that is installed.
pub fn program(name: &str, candidates: &[&str], package: &str) -> String {
    candidates.iter().find(|candidate| Path::new(candidate).exists()).map_or_else(
        || panic!("{name} is not installed: apt-get install {package} (dev/test does it)"),
        ToString::to_string,
    )
}

/// A server that ends with the test process, however that ends: a shell holds it, and stops it when its standard
/// input closes. Its folder goes with it, unless it was stopped to be started again.
pub struct Held {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Held {
    /// Runs `start` in the background and `stop` (with `$pid` set) at the end.
    pub fn start(folder: &Path, start: &str, stop: &str, configure: impl FnOnce(&mut Command)) -> Self {
        let folder = folder.display();
        let script = format!(
            "{start} </dev/null & pid=$!; word=$(cat); {stop}; wait $pid 2>/dev/null; \
             [ \"$word\" = keep ] || rm -rf {folder}"
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(Stdio::piped());
        // A group of its own: a Ctrl-C at the tests' terminal must not reach the servers before the tests.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        configure(&mut command);
        let mut shell = command.spawn().unwrap();
        let stdin = shell.stdin.take();
        Self { shell, stdin }
    }

    /// Stops it in the way that was agreed, keeps its folder, and waits.
    pub fn stop(mut self) {
        self.stdin.as_mut().unwrap().write_all(b"keep").unwrap();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.shell.wait();
    }
}
