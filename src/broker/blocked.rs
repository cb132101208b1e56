//! The slot for a publisher that an alarm of the broker blocks.

use super::publish::Publisher;
use std::sync::{Arc, Mutex};

/// A publisher that an alarm of the broker blocks. It cannot be closed, and a new one would be blocked, too: it is
/// kept, because the broker notifies it when the alarm ends.
pub(super) type Blocked = Arc<Mutex<Option<Arc<Publisher>>>>;
