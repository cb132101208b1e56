//! The publisher that an alarm of the broker has blocked.

use super::publish::Publisher;
use std::sync::{Arc, Mutex};

/// A publisher that an alarm of the broker has blocked. It cannot even be closed, and another one would be blocked, too:
/// it is kept, because it will hear when the alarm is over.
pub(super) type Blocked = Arc<Mutex<Option<Arc<Publisher>>>>;
