//! Exporting dead letters as recorded messages.

use super::{
    audit::log_inspection,
    clock,
    environment::Environment,
    error::DeadLetterError,
    reporter::Reporter,
    selection::Selection,
    walk::{Inspection, Walk},
};
use crate::{
    broker::HeldLetter,
    domain::check_message::CONTENT_TYPE,
    message_file::{self, RecordedMessage},
};
use jiff::Timestamp;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

/// The result of an export.
#[derive(Debug, Clone, Copy)]
pub struct ExportReport {
    /// The number of exported dead letters.
    pub exported: u64,
    /// Whether every message was seen.
    pub inspection: Inspection,
}

/// Writes the selected dead letters to `writer`, one line per message. Removes nothing from the dead queue.
pub async fn export_to_writer(
    environment: Environment<'_>,
    selection: &Selection,
    writer: impl Write,
    reporter: &mut dyn Reporter,
) -> Result<ExportReport, DeadLetterError> {
    let now = clock::now(environment, selection, reporter).await?;
    let walk = Walk::begin(environment.settings, reporter).await?;
    let report = write(walk, selection, now, writer, reporter).await?;
    log_inspection(environment.settings, "export", selection, report.exported);
    Ok(report)
}

/// Writes the selected dead letters to a new file, which exists only if the export is complete. Never overwrites a file.
pub async fn export_to_file(
    environment: Environment<'_>,
    selection: &Selection,
    file: &Path,
    reporter: &mut dyn Reporter,
) -> Result<ExportReport, DeadLetterError> {
    let now = clock::now(environment, selection, reporter).await?;
    let walk = Walk::begin(environment.settings, reporter).await?;
    // The temporary name prevents a partial export from being taken for a complete one.
    let partial_name = file.with_added_extension("part");
    let partial = File::create_new(&partial_name)
        .map_err(|error| DeadLetterError::CreateFile { file: partial_name.clone(), error })?;
    let written = write(walk, selection, now, BufWriter::new(&partial), reporter).await;
    let published = written.and_then(|report| {
        partial.sync_all()?;
        // A link, unlike a rename, fails if the name exists.
        std::fs::hard_link(&partial_name, file)?;
        Ok(report)
    });
    let _ = std::fs::remove_file(&partial_name);
    let report =
        published.map_err(|error| DeadLetterError::NotExported { file: file.to_owned(), error: Box::new(error) })?;
    log_inspection(environment.settings, "export", selection, report.exported);
    Ok(report)
}

async fn write(
    mut walk: Walk<'_>,
    selection: &Selection,
    now: Timestamp,
    mut writer: impl Write,
    reporter: &mut dyn Reporter,
) -> Result<ExportReport, DeadLetterError> {
    let mut exported = 0;
    while let Some((held, letter)) = walk.next().await? {
        if selection.matches(&letter, now) {
            writeln!(writer, "{}", message_file::to_line(&recorded(&held)))?;
            exported += 1;
        }
        walk.release(held).await?;
    }
    writer.flush()?;
    Ok(ExportReport { exported, inspection: walk.end(reporter).await? })
}

fn recorded(held: &HeldLetter) -> RecordedMessage {
    RecordedMessage {
        body: held.body().to_vec(),
        message_id: held.message_id(),
        headers: held.headers(),
        // `publish` uses the configured key: the key of a parked message is the name of a queue.
        routing_key: None,
        content_type: held.is_check_message().then(|| CONTENT_TYPE.to_owned()),
    }
}
