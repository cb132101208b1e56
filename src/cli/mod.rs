//! The command line, with one file for each subcommand.

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

/// Exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// The command is done.
    Done = 0,
    /// The command failed, or it found a problem.
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
    /// Configuration file; without it ./pointsd.toml, otherwise /etc/pointsd/pointsd.toml, otherwise the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: consume the credit queue and credit its messages until a signal stops it.
    Run,
    /// Credit recorded messages in the ledger, without a broker.
    ///
    /// Each line is processed like a message from the queue. Crediting a file a second time changes nothing. Exit
    /// status 1 if a line was malformed, conflicting or rejected.
    Replay(replay::Arguments),
    /// Publish recorded messages to the exchange and wait until the broker has confirmed each of them.
    Publish(publish::Arguments),
    /// Migrate the schema of the ledger to the current version.
    Migrate(Json),
    /// Validate the whole configuration and print the settings in force, without secrets.
    CheckConfig(Json),
    /// Print, declare or check the exchanges, queues and bindings that are needed, or retire a delay queue.
    Topology(topology::Arguments),
    /// Inspect the messages in the dead queue, send them back, export or drop them.
    Dead(dead::Arguments),
    /// Print the points of a user; 0 for an unknown user.
    Balance(balance::Arguments),
    /// Print everything known about a payment: the ledger, the dead queue, and with --live the payment source. Exit
    /// status 1 if the payment is unknown.
    Payment(payment::Arguments),
    /// Prove that the ledger is consistent: every balance is the sum of its entries. Exit status 1 if one is not.
    Verify(Json),
    /// List the credits that no check has found paid, and send them to be checked again.
    Reconcile(reconcile::Arguments),
    /// List the events in the outbox that are not published yet, retry held events, or drop events.
    Outbox(outbox::Arguments),
}

/// The arguments of a command that only prints data.
#[derive(Debug, clap::Args)]
struct Json {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Runs the program and returns its exit status.
pub fn main() -> ExitCode {
    // Once for each process, before the first connection. A second call, which only tests make, has no effect.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let json = wants_json();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            let text = error.to_string();
            Output::new(json).finish(Some(text.trim().trim_start_matches("error: ")), Exit::Usage);
            return ExitCode::from(Exit::Usage as u8);
        }
        Err(error) => error.exit(),
    };
    if matches!(cli.command, Command::Run | Command::Dead(_) | Command::Payment(_)) {
        run::restart_with_deep_stacks();
    }
    // The command runs on its own thread, because the stack size of the main thread cannot be set.
    let thread = std::thread::Builder::new().stack_size(run::DEEP_STACK).spawn(move || run_command(cli, json));
    thread.map_or(ExitCode::FAILURE, |thread| thread.join().unwrap_or(ExitCode::FAILURE))
}

/// Returns whether the command line asks for JSON, even if it cannot be parsed.
fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

fn run_command(cli: Cli, json: bool) -> ExitCode {
    let mut output = Output::new(json);
    let exit = match dispatch(cli, &mut output) {
        Ok(exit) => {
            output.finish(None, exit);
            exit
        }
        Err(error) => {
            let pipe_closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
            // The reader of the output has closed the pipe.
            if error.downcast_ref().is_some_and(pipe_closed) {
                return ExitCode::from(Exit::Failed as u8);
            }
            let usage = error.is::<ConfigError>() || error.is::<UsageError>() || error.is::<app::NewerSchema>();
            let exit = if usage { Exit::Usage } else { Exit::Failed };
            output.finish(Some(&format!("{error:#}")), exit);
            exit
        }
    };
    ExitCode::from(exit as u8)
}

/// Time limit for idle threads to end.
const IDLE_THREADS_TIMEOUT: Duration = Duration::from_millis(500);

/// A command line that is valid but cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

fn dispatch(cli: Cli, output: &mut Output) -> anyhow::Result<Exit> {
    let settings = Settings::load(cli.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(run::DEEP_STACK)
        // Blocking threads resolve names and read files; databases have their own threads.
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
        // The daemon closes its connections itself, within its shutdown timeout.
        if !is_daemon {
            connections_closed().await;
        }
        done
    });
    // A thread that hangs in the database does not delay the exit. Idle threads are joined, because the libraries of
    // libpq abort a process that ends while a thread that has used them ends.
    runtime.shutdown_timeout(IDLE_THREADS_TIMEOUT);
    done
}

/// Opens the ledger for a command that only reads; a daemon may be writing to it at the same time.
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

/// Opens the ledger with a deadline for each call.
fn guarded(settings: &LedgerSettings, access: Access) -> WithDeadline<dyn Ledger> {
    open_ledger_with_events(settings, access, &EventsSettings { exchange: None })
}

/// Opens the ledger for a command that credits. Its transactions write events to the outbox like those of the daemon.
fn open_ledger_with_events(
    settings: &LedgerSettings,
    access: Access,
    events: &EventsSettings,
) -> WithDeadline<dyn Ledger> {
    let events = events.exchange.clone();
    let options = ledger::Options { pool_size: settings.pool_size, timeout: settings.timeout, access, events };
    let url = settings.url.clone();
    WithDeadline::new(move || -> Arc<dyn Ledger> { ledger::open(&url, &options) }, settings.timeout)
}

fn ledger_error(error: DatabaseError) -> anyhow::Error {
    anyhow::Error::new(error).context("ledger")
}
