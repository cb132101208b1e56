//! The command line: one file a subcommand.

mod balance;
mod check_config;
mod dead;
mod input;
mod migrate;
mod outbox;
mod output;
mod payment;
mod publish;
mod reconcile;
mod replay;
mod run;
mod topology;
mod verify;

use crate::{
    app,
    broker::connections_closed,
    config::{ConfigError, Settings},
    database::{DatabaseError, WithDeadline},
    ledger::{
        self, Access, Ledger,
        settings::{EventsSettings, LedgerSettings},
    },
};
use clap::{Parser, Subcommand};
use output::Output;
use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

/// How a command ended: its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or something was found that must not be.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
}

/// Credits loyalty points from RabbitMQ payment messages, once per payment.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Every setting of the configuration can also be given as an environment variable: POINTSD_LEDGER__URL \
                  for `url` in [ledger].\n\nExit status: 0 done; 1 failed; 2 wrong usage or configuration."
)]
struct Cli {
    /// The configuration; without it ./pointsd.toml, else /etc/pointsd/pointsd.toml, else the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: take messages from the credit queue and credit them, until a signal stops it.
    Run,
    /// Credit recorded messages straight into the ledger, without a broker.
    ///
    /// Each line goes the way that a message from the queue goes. Crediting a file twice changes nothing the second
    /// time. Exit status 1 when a line was malformed, conflicting or rejected.
    Replay(replay::Arguments),
    /// Publish recorded messages to the exchange, each confirmed by the broker.
    Publish(publish::Arguments),
    /// Bring the ledger's schema up to date.
    Migrate(Json),
    /// Check the whole configuration and print what is in force, without secrets.
    CheckConfig(Json),
    /// Show, make or compare the exchange and queues that are needed at the broker.
    Topology(topology::Arguments),
    /// Look into the dead queue, send back what was parked, or drop it.
    Dead(dead::Arguments),
    /// Print a user's points; 0 for a user that is not known.
    Balance(balance::Arguments),
    /// Print everything known about a payment: the ledger, the dead queue, and on request the payment source. Exit status
    /// 1 when nothing is.
    Payment(payment::Arguments),
    /// Prove that the ledger is right: every balance is the sum of its entries. Exit status 1 when one is not.
    Verify(Json),
    /// List the credits that no check has found paid, and send them to be checked again.
    Reconcile(reconcile::Arguments),
    /// Look into the outbox: events that are not published yet; have held ones tried again, or drop them.
    Outbox(outbox::Arguments),
}

/// For commands that print data and take nothing else.
#[derive(Debug, clap::Args)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the program; the exit status is the only result.
pub fn main() -> ExitCode {
    // Once a process, before anything connects. A second call (a test's) finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let json = wants_json();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            let text = error.to_string();
            Output::new(json).end(Some(text.trim().trim_start_matches("error: ")), Exit::Usage);
            return ExitCode::from(Exit::Usage as u8);
        }
        Err(error) => error.exit(),
    };
    if matches!(cli.command, Command::Run | Command::Dead(_) | Command::Payment(_)) {
        run::with_deep_stacks();
    }
    // On a thread of its own: the first one's stack cannot be set.
    let thread = std::thread::Builder::new().stack_size(run::DEEP_STACK).spawn(move || run_command(cli, json));
    thread.map_or(ExitCode::FAILURE, |thread| thread.join().unwrap_or(ExitCode::FAILURE))
}

/// Whether the command line asks for JSON: also one that cannot be parsed.
fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

fn run_command(cli: Cli, json: bool) -> ExitCode {
    let mut output = Output::new(json);
    let exit = match dispatch(cli, &mut output) {
        Ok(exit) => {
            output.end(None, exit);
            exit
        }
        Err(error) => {
            let pipe_closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
            // Whoever read our output has seen enough.
            if error.downcast_ref().is_some_and(pipe_closed) {
                return ExitCode::from(Exit::Failed as u8);
            }
            let usage = error.is::<ConfigError>() || error.is::<UsageError>() || error.is::<app::NewerSchema>();
            let exit = if usage { Exit::Usage } else { Exit::Failed };
            output.end(Some(&format!("{error:#}")), exit);
            exit
        }
    };
    ExitCode::from(exit as u8)
}

/// How long threads that do nothing may take to end.
const TIME_FOR_IDLE_THREADS: Duration = Duration::from_millis(500);

/// The command line asks for something that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

fn dispatch(cli: Cli, output: &mut Output) -> anyhow::Result<Exit> {
    let settings = Settings::load(cli.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(run::DEEP_STACK)
        // Names are resolved and files are read there; databases have threads of their own.
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        let is_daemon = matches!(cli.command, Command::Run);
        let done = match cli.command {
            Command::Run => run::run(settings).await,
            Command::Replay(arguments) => replay::run(settings, &arguments, output).await,
            Command::Publish(arguments) => publish::run(&settings, &arguments, output).await,
            Command::Migrate(json) => migrate::run(&settings, json.json, output).await,
            Command::CheckConfig(json) => check_config::run(&settings, json.json, output),
            Command::Topology(arguments) => topology::run(&settings, &arguments, output).await,
            Command::Dead(arguments) => dead::run(&settings, &arguments, output).await,
            Command::Balance(arguments) => balance::run(&settings, &arguments, output).await,
            Command::Payment(arguments) => payment::run(&settings, &arguments, output).await,
            Command::Verify(json) => verify::run(&settings, json.json, output).await,
            Command::Reconcile(arguments) => reconcile::run(&settings, &arguments, output).await,
            Command::Outbox(arguments) => outbox::run(&settings, &arguments, output).await,
        };
        // The daemon closes its own, within its time.
        if !is_daemon {
            connections_closed().await;
        }
        done
    });
    // A thread that hangs in the database does not hold up the exit. Those that are idle are joined: libpq's libraries abort a
    // process that ends while a thread that has used them ends.
    runtime.shutdown_timeout(TIME_FOR_IDLE_THREADS);
    done
}

/// A ledger for a command that only reads, beside a daemon that may be writing.
async fn reading(settings: &LedgerSettings) -> anyhow::Result<WithDeadline<dyn Ledger>> {
    let ledger = guarded(settings, Access::Read);
    require_current_schema(&ledger).await?;
    Ok(ledger)
}

/// Refuses a ledger whose schema is not that of this program.
async fn require_current_schema(ledger: &WithDeadline<dyn Ledger>) -> anyhow::Result<()> {
    let state = ledger.call(Ledger::schema).await.map_err(ledger_error)?;
    app::refuse_unless_current(&state)
}

fn guarded(settings: &LedgerSettings, access: Access) -> WithDeadline<dyn Ledger> {
    announcing(settings, access, &EventsSettings { exchange: None })
}

/// The same for a command that credits: what it commits is made known as the daemon does it.
fn announcing(settings: &LedgerSettings, access: Access, events: &EventsSettings) -> WithDeadline<dyn Ledger> {
    let events = events.exchange.clone();
    let options = ledger::Options { pool_size: settings.pool_size, timeout: settings.timeout, access, events };
    let url = settings.url.clone();
    WithDeadline::new(move || -> Arc<dyn Ledger> { ledger::open(&url, &options) }, settings.timeout)
}

fn ledger_error(error: DatabaseError) -> anyhow::Error {
    anyhow::Error::new(error).context("ledger")
}
