//! `pointsd dead export`

use super::{Audit, Exit, Filter, Output, Walk, clock};
use crate::{
    config::Settings,
    domain::check_message::CONTENT_TYPE,
    message_file::{self, RecordedMessage},
    parked::Selection,
};
use anyhow::Context as _;
use jiff::Timestamp;
use std::{
    fs::File,
    io::{self, BufWriter, Write},
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

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let selection = arguments.filter.selection();
    let name = arguments.file.display();
    let now = clock::now(settings, &selection, output).await?;
    let walk = Walk::begin(settings, output).await?;
    let (selected, exit) = if arguments.file == Path::new("-") {
        write(walk, (&selection, now), BufWriter::new(io::stdout()), output).await?
    } else {
        // Under another name until it is whole: half an export would pass for a whole one.
        let part = arguments.file.with_added_extension("part");
        let file = File::create_new(&part).with_context(|| format!("{} cannot be made", part.display()))?;
        let written = write(walk, (&selection, now), BufWriter::new(&file), output).await.and_then(|written| {
            file.sync_all()?;
            // What was exported before is not written over.
            std::fs::hard_link(&part, &arguments.file)?;
            Ok(written)
        });
        let _ = std::fs::remove_file(&part);
        written.with_context(|| format!("nothing is exported to {name}"))?
    };
    output.complain(&format!("{selected} messages exported; they are still in {}", settings.broker.dead_queue));
    Audit {
        action: "export",
        selection: &selection,
        selected: Some(selected),
        removed: 0,
        end: "done",
        requeue_id: None,
    }
    .tell(settings);
    Ok(exit)
}

async fn write(
    mut walk: Walk<'_>,
    (selection, now): (&Selection, Timestamp),
    mut file: impl Write,
    output: &mut Output,
) -> anyhow::Result<(u64, Exit)> {
    let mut selected = 0;
    while let Some((found, parked)) = walk.next().await? {
        if selection.takes(&parked, now) {
            let message = RecordedMessage {
                body: found.body().to_vec(),
                message_id: found.message_id(),
                headers: found.headers(),
                // The configured one: a parked message came through the queue's own name.
                routing_key: None,
                content_type: found.is_check_message().then(|| CONTENT_TYPE.to_owned()),
            };
            writeln!(file, "{}", message_file::to_line(&message))?;
            selected += 1;
        }
        walk.release(found).await?;
    }
    file.flush()?;
    Ok((selected, walk.end(output).await?))
}
