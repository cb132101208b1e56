//! `pointsd` as a child process, with a configuration of its own.

use super::{eventually, free_port, is_root, unique};
use rustix::process::Pid;
pub use rustix::process::Signal;
use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

/// The program.
pub const POINTSD: &str = env!("CARGO_BIN_EXE_pointsd");

/// A delay that outlasts every test: what is put into its queue stays there, and is found at the end.
const NEVER: &str = "1h";

/// A configuration file in a folder of its own; the queues have names that no other test uses.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub exchange: String,
    pub key: String,
    pub credit_queue: String,
    pub check_queue: String,
    pub dead_queue: String,
}

impl Setup {
    /// For a broker and a ledger; `more` is TOML that begins in `[broker]`.
    pub fn new(broker_url: &str, ledger_url: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = unique("t");
        let setup = Self {
            folder,
            exchange: format!("{name}.points"),
            key: format!("{name}.credit"),
            credit_queue: format!("{name}.credit"),
            check_queue: format!("{name}.check"),
            dead_queue: format!("{name}.dead"),
        };
        let Self { exchange, key, credit_queue, check_queue, dead_queue, .. } = &setup;
        let text = format!(
            "[retry]\ndelays = [{NEVER:?}]\n[ledger]\nurl = {ledger_url:?}\nauto_migrate = true\n[broker]\nurl = {broker_url:?}\n\
             exchange = {exchange:?}\nrouting_key = {key:?}\ncredit_queue = {credit_queue:?}\n\
             check_queue = {check_queue:?}\ndead_queue = {dead_queue:?}\n{more}\n"
        );
        std::fs::write(setup.config(), text).unwrap();
        setup
    }

    /// The queue of one delay.
    pub fn retry_queue(&self, delay: &str) -> String {
        format!("{}.retry.{delay}", self.credit_queue)
    }

    /// The queue in which messages wait for a check.
    pub fn check_delay_queue(&self, delay: &str) -> String {
        format!("{}.delay.{delay}", self.check_queue)
    }

    /// The only delay queue unless a test asks for others.
    pub fn never_used(&self) -> String {
        self.retry_queue(NEVER)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("pointsd.toml")
    }

    /// A command with this configuration and nothing of the test's own environment that could change it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = pointsd(arguments);
        command.arg("--config").arg(self.config());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that prints JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(arguments);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", told(&output)))
    }

    /// Starts the daemon.
    pub fn start(&self) -> Daemon {
        self.start_with(|_| {})
    }

    /// Starts the daemon, with more said about its process.
    pub fn start_with(&self, configure: impl FnOnce(&mut Command)) -> Daemon {
        let mut command = self.command(&["run"]);
        configure(&mut command);
        self.spawn(command)
    }

    /// Runs a shell script that may mount what nobody else sees, and becomes the daemon.
    pub fn start_with_mounts(&self, script: &str) -> Daemon {
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", script]).stdin(Stdio::null());
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Daemon {
        let log = self.folder.path().join(unique("log"));
        let port = free_port();
        command.env("POINTSD_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Daemon { child: command.spawn().unwrap(), port, log }
    }
}

/// The program with these arguments, in an environment without its variables.
pub fn pointsd(arguments: &[&str]) -> Command {
    let mut command = Command::new(POINTSD);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("POINTSD_") || name == "STATE_DIRECTORY" || name == "NOTIFY_SOCKET" {
            command.env_remove(name);
        }
    }
    command
}

/// Everything that a command said.
pub fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running daemon, killed when it is dropped.
pub struct Daemon {
    pub child: Child,
    pub port: u16,
    log: PathBuf,
}

impl Daemon {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Status and body of one of its endpoints; `None` while nobody listens.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub fn wait_ready(&self) {
        self.wait_for("/readyz says ready", |daemon| daemon.get("/readyz")?.0.eq(&200).then_some(()));
    }

    /// Waits until it is not ready and says why with this text.
    pub fn wait_not_ready(&self, reason: &str) {
        self.wait_for(&format!("/readyz says {reason:?}"), |daemon| {
            let (status, body) = daemon.get("/readyz")?;
            (status == 503 && body.contains(reason)).then_some(())
        });
    }

    /// Waits for something that the daemon does; a failure shows its log.
    pub fn wait_for<T>(&self, what: &str, mut check: impl FnMut(&Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(value) = check(self) {
                return value;
            }
            assert!(begun.elapsed() < super::PATIENCE, "{what}: not in time; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The value of a metric with exactly these labels, as in `name{a="b"}`.
    pub fn metric(&self, series: &str) -> f64 {
        let (status, text) = self.get("/metrics").expect("the daemon serves /metrics");
        assert_eq!(status, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in:\n{text}")).trim().parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let sent = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        sent.unwrap_or_else(|error| panic!("{error}; its log:\n{}", self.log()));
    }

    /// Kills it on the spot.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the daemon ends", || child.try_wait().unwrap())
    }

    /// SIGTERM, and a clean end.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}; its log:\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
