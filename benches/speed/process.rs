//! What is read of a process: its time, its memory, and how far it has come.

use crate::{clients::Client, support::daemon::Daemon};
use procfs::process::Process;
use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The first argument of a process that is a reference.
pub const CLIENT: &str = "client";

/// What was read of one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    /// Messages (or whatever it was) a second.
    pub rate: f64,
    /// Seconds of both kinds of processor time, of all the processes together, for a million messages.
    pub cpu_per_million: f64,
    /// The most resident memory of any of the processes. MiB.
    pub peak_mib: f64,
    /// Seconds: the median and the 99th percentile of something that is waited for.
    pub latency: Option<(f64, f64)>,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    cpu: f64,
    peak_mib: f64,
}

fn used(pid: u32) -> Used {
    let process = Process::new(i32::try_from(pid).unwrap()).unwrap();
    let stat = process.stat().unwrap();
    #[allow(clippy::cast_precision_loss, reason = "figures of a run of seconds")]
    let cpu = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    #[allow(clippy::cast_precision_loss, reason = "the same")]
    let peak_mib = process.status().unwrap().vmhwm.unwrap() as f64 / 1024.0;
    Used { cpu, peak_mib }
}

impl Run {
    /// So many messages, done by these daemons in that time.
    pub fn of(daemons: &[Daemon], messages: u64, took: Duration) -> Self {
        let used: Vec<Used> = daemons.iter().map(|daemon| used(daemon.child.id())).collect();
        Self::new(messages, took, &used)
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of some millions")]
    fn new(messages: u64, took: Duration, used: &[Used]) -> Self {
        Self {
            rate: messages as f64 / took.as_secs_f64(),
            cpu_per_million: used.iter().map(|used| used.cpu).sum::<f64>() / messages as f64 * 1e6,
            peak_mib: used.iter().map(|used| used.peak_mib).fold(0.0, f64::max),
            latency: None,
        }
    }
}

/// Runs a reference to its end, in a process of its own.
pub fn run_client(client: &Client, messages: u64) -> Run {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(CLIENT)
        .arg(serde_json::to_string(client).unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let took = line.trim().parse().unwrap_or_else(|_| panic!("{client:?} failed"));
    let used = used(child.id());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    Run::new(messages, Duration::from_secs_f64(took), &[used])
}

/// The other side of [`run_client`]: does it, tells how long it took, and stays until that was read.
pub fn be_client(client: &str) {
    let client: Client = serde_json::from_str(client).unwrap();
    let took = client.run();
    println!("{}", took.as_secs_f64());
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// How often a daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// The sum of all series of a metric whose labels contain this; `None` while the daemon does not answer.
pub fn total(daemon: &Daemon, metric: &str, labels: &str) -> Option<f64> {
    let (200, text) = daemon.get("/metrics")? else { return None };
    let series = text.lines().filter(|line| line.starts_with(metric) && line.contains(labels));
    Some(series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum())
}

/// Watches daemons from the first message that they have settled to the last one. `done`: how many one of them has.
#[allow(clippy::cast_precision_loss, reason = "counts of some millions")]
pub fn watch(daemons: &[Daemon], messages: u64, done: impl Fn(&Daemon) -> Option<f64>) -> Run {
    let begun = Instant::now();
    // When nothing was settled for the last time.
    let mut first = begun;
    loop {
        let now = Instant::now();
        let counts: Option<Vec<f64>> = daemons.iter().map(&done).collect();
        match counts.map(|counts| counts.iter().sum::<f64>()) {
            Some(0.0) => first = now,
            Some(count) if count >= messages as f64 => {
                let rate = messages as f64 / (now - first).as_secs_f64();
                return Run { rate, ..Run::of(daemons, messages, now - begun) };
            }
            // One that does not answer in time is asked again.
            _ => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "stuck");
        std::thread::sleep(POLL);
    }
}
