//! A deadline for every call to a database, kept by the caller.
//!
//! No setting of libpq ends a query whose server has stopped, and r2d2 waits for it when it checks a connection out.
//! So each call runs on a thread of its own that is left behind when it does not answer, together with its
//! connection and pool. A commit of credits that lands after that is harmless: the message comes again and is a duplicate.
//! What would not be harmless keeps its deadline itself ([`WithDeadline::call_until`]).

use super::DatabaseError;
use crate::{domain::failure::Class, observe::events};
use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Handle, Runtime};

/// The stack of a thread that waits for a database, in bytes: nothing there is recursive.
const STACK: usize = 2 * 1024 * 1024;

/// The threads that wait for databases, apart from those that handle messages, which need deep stacks.
fn blocking_threads() -> Result<&'static Handle, DatabaseError> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    // Never driven: only its pool of threads is used.
    let runtime = RUNTIME.get_or_init(|| Builder::new_current_thread().thread_stack_size(STACK).build().ok());
    let runtime = runtime.as_ref().ok_or_else(|| DatabaseError::Unreachable("no thread can be started".into()))?;
    Ok(runtime.handle())
}

type Open<D> = dyn Fn() -> Arc<D> + Send + Sync;

/// A ledger, or another database, whose calls answer in time or fail.
pub struct WithDeadline<D: ?Sized> {
    open: Box<Open<D>>,
    current: Mutex<Arc<D>>,
    timeout: Duration,
}

impl<D: ?Sized + Send + Sync + 'static> WithDeadline<D> {
    /// `open` makes one with a pool of its own and without waiting: now, and whenever one is abandoned.
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

    /// The same for work that must not land when nobody waits for it any more: it is told when that is.
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
                // What is pooled may be connected to a server that is down, or no primary any more.
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

    /// The same without a deadline, for work that may take its time: nobody's message waits for it.
    pub async fn call_at_leisure<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let database = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let thread = blocking_threads()?.spawn_blocking(move || work(&*database));
        thread.await.unwrap_or_else(|join| Err(DatabaseError::Panicked(join.to_string())))
    }

    /// Puts a fresh one in the place of this one, unless another call has done so already.
    fn renew(&self, this: &Arc<D>) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let still_current = Arc::ptr_eq(&current, this);
        if still_current {
            *current = (self.open)();
        }
        still_current
    }
}
