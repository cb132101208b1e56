//! The consumed queues and their pipelines for credits or checks.

use super::SLACK;
use crate::{
    broker::{BatchSize, CONFIRM_TIMEOUT, Sessions},
    config::Settings,
    domain::{component::Component, failure::Outage},
    pipeline::{
        check::{CheckPipeline, DECIDING_TIME},
        credit::CreditPipeline,
    },
};
use std::{sync::Arc, time::Duration};

/// A consumed queue with its pipeline and the limits of its sessions.
pub(super) struct QueueConsumer {
    pub(super) sessions: Sessions,
    pub(super) pipeline: Pipeline,
    /// The number of workers, each of which processes one batch at a time.
    pub(super) workers: u32,
    /// The maximum size of a batch.
    pub(super) batch: BatchSize,
    /// The maximum number of unacknowledged deliveries.
    pub(super) prefetch: u16,
    /// How long a step of a worker may take before it counts as stalled.
    pub(super) step: Duration,
}

/// The pipeline that processes the batches of a queue.
#[derive(Clone)]
pub(super) enum Pipeline {
    Credits(Arc<CreditPipeline>),
    Checks(Arc<CheckPipeline>),
}

impl Pipeline {
    /// How long a probe of the payment source may take; `None` without a payment source.
    pub(super) fn max_probe_duration(&self) -> Option<Duration> {
        match self {
            Self::Credits(_) => None,
            Self::Checks(pipeline) => Some(pipeline.source.max_duration()),
        }
    }

    /// Releases the brake. Returns whether it was engaged.
    pub(super) fn release_brake(&self) -> bool {
        match self {
            Self::Credits(_) => false,
            Self::Checks(pipeline) => pipeline.brake.release(),
        }
    }

    /// Probes the ledger.
    pub(super) async fn probe_ledger(&self) -> Result<(), Outage> {
        match self {
            Self::Credits(pipeline) => pipeline.ledger.probe().await,
            Self::Checks(pipeline) => pipeline.ledger.probe().await,
        }
    }

    /// Probes the payment source.
    pub(super) async fn probe_source(&self) -> Result<(), Outage> {
        match self {
            Self::Credits(_) => Ok(()),
            Self::Checks(pipeline) => pipeline.probe_source().await,
        }
    }
}

impl QueueConsumer {
    /// Creates the consumer of a queue of points messages, with one worker for each connection to the ledger.
    pub(super) fn credits(settings: &Settings, pipeline: CreditPipeline) -> Self {
        Self {
            sessions: Sessions::new(pipeline.component, &settings.plan()),
            workers: settings.ledger.pool_size,
            batch: BatchSize { messages: settings.ledger.batch_max, bytes: usize::MAX, linger: Duration::ZERO },
            prefetch: prefetch(settings, pipeline.component),
            pipeline: Pipeline::Credits(Arc::new(pipeline)),
            step: settings.ledger.timeout.max(CONFIRM_TIMEOUT) + SLACK,
        }
    }

    /// Creates the consumer of a queue of checks or notifications. It has one worker, because the brake counts
    /// consecutive reversals. The deliveries that it holds beyond a batch are limited, because a payment source may be
    /// slow.
    pub(super) fn checks(settings: &Settings, pipeline: Arc<CheckPipeline>) -> Self {
        let component = pipeline.component;
        let max_body_bytes = settings.message.max_body_bytes;
        let (batch, max_held) = match component {
            // About the number of payments of one commit, whether they arrive in one check message or in many.
            Component::Checks => (
                BatchSize { messages: settings.ledger.batch_max, bytes: max_body_bytes, linger: LINGER },
                (MAX_CHECK_BYTES / max_body_bytes).max(1),
            ),
            Component::Credits | Component::Source(_) | Component::Relay => (
                BatchSize { messages: settings.ledger.batch_max, bytes: usize::MAX, linger: Duration::ZERO },
                2 * settings.ledger.batch_max,
            ),
        };
        let max_held = u16::try_from(max_held).unwrap_or(u16::MAX);
        let step =
            settings.ledger.timeout.max(CONFIRM_TIMEOUT).max(DECIDING_TIME + pipeline.source.max_duration()) + SLACK;
        Self {
            sessions: Sessions::new(pipeline.component, &settings.plan()),
            pipeline: Pipeline::Checks(pipeline),
            workers: 1,
            batch,
            prefetch: prefetch(settings, component).min(max_held),
            step,
        }
    }

    pub(super) fn component(&self) -> Component {
        match &self.pipeline {
            Pipeline::Credits(pipeline) => pipeline.component,
            Pipeline::Checks(pipeline) => pipeline.component,
        }
    }

    /// Whether the queue contains points messages.
    pub(super) fn is_credits(&self) -> bool {
        matches!(self.pipeline, Pipeline::Credits(_))
    }

    /// The reason why the brake is engaged, and a future that waits for its release; `None` if it is not engaged.
    pub(super) fn brake(&self) -> Option<(Outage, impl Future<Output = ()>)> {
        match &self.pipeline {
            Pipeline::Credits(_) => None,
            Pipeline::Checks(pipeline) => Some((pipeline.brake.engaged()?, pipeline.brake.until_released())),
        }
    }
}

/// How long a batch of checks waits for more messages: checks are not urgent, and many small ones share one look-up.
const LINGER: Duration = Duration::from_millis(50);

/// The maximum size of the check messages that a worker holds. Bytes.
const MAX_CHECK_BYTES: usize = 20 * 1024 * 1024;

/// The prefetch of a component. The queue of a source may be a quorum queue, which accepts no larger prefetch than the
/// limit.
fn prefetch(settings: &Settings, component: Component) -> u16 {
    const QUORUM_LIMIT: u16 = 2000;
    match component {
        Component::Source(_) => settings.broker.prefetch.min(QUORUM_LIMIT),
        Component::Credits | Component::Checks | Component::Relay => settings.broker.prefetch,
    }
}
