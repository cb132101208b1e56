//! The use cases of `pointsd dead`: list, show, requeue, export and drop the messages of the dead queue.
//!
//! Each use case takes its options and an [`Environment`], reports its progress through a [`Reporter`] and returns a report. None
//! of them knows a terminal or a command line. Each writes its audit to the log.

mod audit;
mod clock;
mod drop;
mod environment;
mod error;
mod export;
mod groups;
mod list;
mod reporter;
mod requeue;
mod selection;
mod show;
mod walk;

pub use drop::{DropCandidates, DropReport, HeldSelection, MAX_HOLD, select_for_drop};
pub use environment::Environment;
pub use error::DeadLetterError;
pub use export::{ExportReport, export_to_file, export_to_writer};
pub use groups::{ErrorGroup, Group, Groups, MAX_LISTED_ERRORS};
pub use list::{ListOptions, ListReport, list, list_payment};
pub use reporter::Reporter;
pub use requeue::{MAX_CANARY_WAIT, RequeueOptions, RequeueReport, requeue};
pub use selection::Selection;
pub use show::{CreditVersion, CurrentRecord, ShowOptions, ShowReport, ShownLetter, show};
pub use walk::{Inspection, Walk};
