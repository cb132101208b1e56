//! Stopping on signals.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first SIGTERM or SIGINT cancels, after `announce` is called with the name of the signal. A second
/// signal ends the process at once, which loses nothing: as after a kill, unfinished work is only repeated.
pub fn stop_on_signals(announce: impl Fn(&'static str) + Send + 'static) -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if token.is_cancelled() {
                std::process::exit(1);
            }
            announce(signal);
            token.cancel();
        }
    });
    Ok(stop)
}
