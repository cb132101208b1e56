//! `pointsd dead export`

use super::{Exit, Output, exit_of, filter::Filter, reporter::TerminalReporter};
use crate::dead_letters::{DeadLetterError, Environment, export_to_file, export_to_writer};
use std::{
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A new file; - is standard output.
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    filter: Filter,
}

pub(super) async fn run(
    environment: Environment<'_>,
    arguments: &Arguments,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let selection = arguments.filter.selection();
    let reporter = &mut TerminalReporter::new(output);
    let report = if arguments.file == Path::new("-") {
        let exported = export_to_writer(environment, &selection, BufWriter::new(io::stdout()), reporter).await;
        exported.map_err(|error| match error {
            // As itself: a closed pipe is no failure to report.
            DeadLetterError::Write(error) => anyhow::Error::new(error),
            error => error.into(),
        })?
    } else {
        export_to_file(environment, &selection, &arguments.file, reporter).await?
    };
    let queue = &environment.settings.broker.dead_queue;
    output.complain(&format!("{} messages exported; they are still in {queue}", report.exported));
    Ok(exit_of(report.inspection))
}
