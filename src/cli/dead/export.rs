//! `pointsd dead export`

use super::{Audit, Exit, Filter, Output, Walk};
use crate::{
    config::Settings,
    recorded::{self, Recorded},
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
    let now = Timestamp::now();
    let name = arguments.file.display();
    let mut file: Box<dyn Write + Send> = if arguments.file == Path::new("-") {
        Box::new(BufWriter::new(io::stdout()))
    } else {
        // What was exported before is not written over.
        Box::new(BufWriter::new(File::create_new(&arguments.file).with_context(|| format!("{name} cannot be made"))?))
    };
    let mut walk = Walk::begin(settings, output).await?;
    let mut selected = 0;
    while let Some((found, parked)) = walk.next().await? {
        if selection.takes(&parked, now) {
            let message = Recorded {
                body: found.body().to_vec(),
                message_id: found.message_id(),
                headers: found.headers(),
                // The configured one: a parked message came through the queue's own name.
                routing_key: None,
            };
            writeln!(file, "{}", recorded::to_line(&message))?;
            selected += 1;
        }
    }
    file.flush().with_context(|| format!("{name} cannot be written"))?;
    walk.end().await?;
    output.complain(&format!("{selected} messages exported; they are still in {}", settings.broker.dead_queue));
    Audit { action: "export", selection: &selection, selected, removed: 0, end: "done", requeue_id: None }
        .tell(settings);
    Ok(Exit::Done)
}
