//! A private RabbitMQ node from Debian's package: own ports, own folder, own epmd.

use super::{Held, free_port, program};
use std::{
    fmt::Write as _,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// A node that ends when it is dropped.
pub struct Rabbit {
    folder: tempfile::TempDir,
    pub port: u16,
    pub tls_port: Option<u16>,
    dist_port: u16,
    epmd_port: u16,
    /// What the Erlang machine is told beside its distribution's address.
    erlang: &'static str,
    server: Option<Held>,
}

/// One scheduler: the tests' machine has few cores, and busy waiting would take them.
const ONE_SCHEDULER: &str = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none";

/// The node that tests share which do not stop it: they use queues of their own.
pub fn shared() -> &'static Rabbit {
    static SHARED: OnceLock<Rabbit> = OnceLock::new();
    SHARED.get_or_init(|| Rabbit::start(None))
}

/// Certificates for `amqps://`, as PEM files.
pub struct Tls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Rabbit {
    /// Starts a node and waits until it takes connections.
    pub fn start(tls: Option<&Tls>) -> Self {
        Self::start_with(tls, ONE_SCHEDULER)
    }

    /// For measurements: with as many schedulers as there are cores, and whatever else the package's defaults are.
    #[allow(dead_code, reason = "the tests do not measure")]
    pub fn start_as_it_comes() -> Self {
        Self::start_with(None, "")
    }

    fn start_with(tls: Option<&Tls>, erlang: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("pointsd-rabbit-").tempdir().unwrap();
        let (port, dist_port, epmd_port) = (free_port(), free_port(), free_port());
        let tls_port = tls.map(|_| free_port());
        let mut config =
            format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\nlog.file.level = warning\n");
        if let (Some(tls), Some(port)) = (tls, tls_port) {
            write!(
                config,
                "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
                tls.ca.display(),
                tls.certificate.display(),
                tls.key.display()
            )
            .unwrap();
        }
        std::fs::write(folder.path().join("rabbitmq.conf"), config).unwrap();
        std::fs::write(folder.path().join("enabled_plugins"), "[].\n").unwrap();
        // Erlang refuses a cookie that others can read; its folder may not be open either.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut rabbit = Self { folder, port, tls_port, dist_port, epmd_port, erlang, server: None };
        rabbit.boot();
        rabbit
    }

    fn environment(&self, command: &mut Command) {
        let at = |name: &str| self.folder.path().join(name);
        command
            .env("HOME", self.folder.path())
            .env("RABBITMQ_NODENAME", format!("pointsd{}@localhost", self.port))
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP", at("erl_crash.dump"))
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_PID_FILE", at("pid"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", at("no-env-file"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!("{} -kernel inet_dist_use_interface {{127,0,0,1}}", self.erlang),
            );
    }

    /// Starts the node (again, on the same data) and waits until it takes connections.
    pub fn boot(&mut self) {
        let server = program("RabbitMQ", &["/usr/lib/rabbitmq/bin/rabbitmq-server"], "rabbitmq-server");
        let epmd = program("epmd", &["/usr/bin/epmd"], "erlang-base");
        let log = std::fs::File::create(self.folder.path().join("console")).unwrap();
        let stop = format!("kill -TERM $pid; wait $pid; {epmd} -port {} -kill >/dev/null 2>&1", self.epmd_port);
        self.server = Some(Held::start(self.folder.path(), &format!("exec {server}"), &stop, |command| {
            self.environment(command);
            command.stdout(log.try_clone().unwrap()).stderr(log);
        }));
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "RabbitMQ did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        // The listener opens a moment before the node takes logins.
        super::amqp::wait_for_login(&self.url());
    }

    /// Stops the node in order; its data stay.
    pub fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }

    /// SIGKILL. Its data stay.
    pub fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.server.take().unwrap().stop();
    }

    /// Runs `rabbitmqctl` for this node. What it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let program = program("rabbitmqctl", &["/usr/lib/rabbitmq/bin/rabbitmqctl"], "rabbitmq-server");
        let mut command = Command::new(program);
        command.args(arguments);
        self.environment(&mut command);
        // A node takes logins a moment before `rabbitmqctl` finds it running.
        let output = super::eventually("the node is running", || {
            let output = command.output().unwrap();
            (!super::daemon::told(&output).contains("app to be running")).then_some(output)
        });
        assert!(output.status.success(), "{arguments:?}: {}", super::daemon::told(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How often the node's log says this.
    pub fn logged(&self, text: &str) -> usize {
        let logs = std::fs::read_dir(self.folder.path().join("log")).unwrap().flatten();
        let logs = logs.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default());
        logs.map(|log| log.matches(text).count()).sum()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("console")).unwrap_or_default()
    }

    /// What the node itself says of a failure: the end of its log, its console, and whether it crashed.
    fn account(&self) -> String {
        let folder = self.folder.path();
        let logs = std::fs::read_dir(folder.join("log")).into_iter().flatten().flatten();
        let logs = logs.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default());
        let end = |text: String| {
            text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        format!(
            "the broker at port {}: crash dump {}; console:\n{}\nlog:\n{}",
            self.port,
            folder.join("erl_crash.dump").exists(),
            end(self.log()),
            logs.map(end).collect::<Vec<_>>().join("\n")
        )
    }

    /// For a client.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }
}

impl Drop for Rabbit {
    #[allow(clippy::print_stderr, reason = "a test that fails shows its broker's log")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr, reason = "a test that fails says why")]
            {
                eprintln!("{}", self.account());
            }
        }
    }
}
