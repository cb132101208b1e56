//! A deadline for every call to a database, enforced by the caller.
//!
//! No setting of libpq ends a query whose server has stopped, and r2d2 waits for such a query when it checks a
//! connection out. So each call runs on a thread of its own, which is abandoned together with its connection and pool
//! if the call does not return in time. A commit of credits that happens after that is harmless: the message is
//! delivered again and is a duplicate. Work whose late commit would be harmful enforces the deadline itself
//! ([`WithDeadline::call_until`]).

use super::DatabaseError;
use crate::{
    domain::failure::Class,
    observe::events::{self, Event as _},
};
use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Handle, Runtime};

/// The stack of a thread that waits for a database, in bytes: its code is not recursive.
const STACK: usize = 2 * 1024 * 1024;

/// Returns the threads that wait for databases. They are separate from the threads that process messages, which need
/// larger stacks.
fn blocking_threads() -> Result<&'static Handle, DatabaseError> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    // The runtime is never driven: only its blocking threads are used.
    let runtime = RUNTIME.get_or_init(|| Builder::new_current_thread().thread_stack_size(STACK).build().ok());
    let runtime = runtime.as_ref().ok_or_else(|| DatabaseError::Unreachable("cannot start a thread".into()))?;
    Ok(runtime.handle())
}

type Open<D> = dyn Fn() -> Arc<D> + Send + Sync;

/// A database (the ledger or another one) whose calls return in time or fail.
pub struct WithDeadline<D: ?Sized> {
    open: Box<Open<D>>,
    current: Mutex<Arc<D>>,
    timeout: Duration,
}

impl<D: ?Sized + Send + Sync + 'static> WithDeadline<D> {
    /// Creates a database with a deadline. `open` returns a database with its own pool, without blocking; it is called
    /// now, and whenever a database is abandoned.
    pub fn new(open: impl Fn() -> Arc<D> + Send + Sync + 'static, timeout: Duration) -> Self {
        let current = Mutex::new(open());
        Self { open: Box::new(open), current, timeout }
    }

    /// Runs `work` on a thread that may block, for at most the timeout.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        self.call_until(|database, _| work(database)).await
    }

    /// Runs `work` as [`Self::call`] does, and passes it the deadline, after which it must not commit.
    pub async fn call_until<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D, Instant) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let deadline = Instant::now() + self.timeout;
        let database = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let thread = blocking_threads()?.spawn_blocking({
            let database = Arc::clone(&database);
            move || work(&*database, deadline)
        });
        match tokio::time::timeout(self.timeout, thread).await {
            Ok(Ok(answer)) => answer.inspect_err(|error| {
                // The pooled connections may belong to a server that is down or is no longer the primary.
                if error.class() == Class::Outage {
                    self.renew(&database);
                }
            }),
            Ok(Err(join)) => Err(DatabaseError::Panicked(join.to_string())),
            Err(_) => {
                if self.renew(&database) {
                    events::DatabaseAbandoned { timeout: self.timeout }.emit();
                }
                Err(DatabaseError::Deadline(self.timeout))
            }
        }
    }

    /// Runs `work` without a deadline, for work that no message waits for.
    pub async fn call_at_leisure<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let database = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let thread = blocking_threads()?.spawn_blocking(move || work(&*database));
        thread.await.unwrap_or_else(|join| Err(DatabaseError::Panicked(join.to_string())))
    }

    /// Replaces this database by a new one, unless another call has replaced it already. Returns whether it did.
    fn renew(&self, this: &Arc<D>) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let still_current = Arc::ptr_eq(&current, this);
        if still_current {
            *current = (self.open)();
        }
        still_current
    }
}
