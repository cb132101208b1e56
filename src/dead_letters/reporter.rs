//! The progress of a use case.

/// Receives the progress of a use case while it runs.
pub trait Reporter: Send {
    /// Receives a remark for the person who started the use case.
    fn note(&mut self, text: &str);

    /// Announces that the messages are selected and that work on `total` of them begins.
    fn begin(&mut self, total: u64);

    /// Announces that `done` messages of the total are done.
    fn advance(&mut self, done: u64);

    /// Announces that the work has ended, done or not.
    fn end(&mut self);
}
