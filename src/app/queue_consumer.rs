//! What is consumed, and by which pipeline: credits, or checks.

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

/// A queue and its pipeline, from which sessions are made one after the other.
pub(super) struct QueueConsumer {
    pub(super) sessions: Sessions,
    pub(super) pipeline: Pipeline,
    /// Batches that are worked on at a time.
    pub(super) workers: u32,
    /// How large a batch may be.
    pub(super) batch: BatchSize,
    /// Most unacknowledged deliveries.
    pub(super) prefetch: u16,
    /// How long a worker's step may take before it counts as stuck.
    pub(super) step: Duration,
}

/// A batch's way.
#[derive(Clone)]
pub(super) enum Pipeline {
    Credits(Arc<CreditPipeline>),
    Checks(Arc<CheckPipeline>),
}

impl Pipeline {
    /// How long a probe of the payment source may take; `None` without one.
    pub(super) fn max_probe_duration(&self) -> Option<Duration> {
        match self {
            Self::Credits(_) => None,
            Self::Checks(pipeline) => Some(pipeline.source.max_duration()),
        }
    }

    /// Whether a brake was engaged, and is released now.
    pub(super) fn release_brake(&self) -> bool {
        match self {
            Self::Credits(_) => false,
            Self::Checks(pipeline) => pipeline.brake.release(),
        }
    }

    /// Whether the ledger takes its work.
    pub(super) async fn probe_ledger(&self) -> Result<(), Outage> {
        match self {
            Self::Credits(pipeline) => pipeline.ledger.probe().await,
            Self::Checks(pipeline) => pipeline.ledger.probe().await,
        }
    }

    /// Whether the payment source works.
    pub(super) async fn probe_source(&self) -> Result<(), Outage> {
        match self {
            Self::Credits(_) => Ok(()),
            Self::Checks(pipeline) => pipeline.probe_source().await,
        }
    }
}

impl QueueConsumer {
    /// Points messages: as many workers as there are ledger writers.
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

    /// Checks, or notifications: one worker, because the brake counts what is done in a row. What it holds beyond a batch is
    /// bounded, because a source may take its time.
    pub(super) fn checks(settings: &Settings, pipeline: Arc<CheckPipeline>) -> Self {
        let component = pipeline.component;
        let max_body_bytes = settings.message.max_body_bytes;
        let (batch, most_held) = match component {
            // About as many payments as a commit takes, whether they come in one check message or in many.
            Component::Checks => (
                BatchSize { messages: settings.ledger.batch_max, bytes: max_body_bytes, linger: LINGER },
                (MOST_CHECK_BYTES / max_body_bytes).max(1),
            ),
            Component::Credits | Component::Source(_) | Component::Relay => (
                BatchSize { messages: settings.ledger.batch_max, bytes: usize::MAX, linger: Duration::ZERO },
                2 * settings.ledger.batch_max,
            ),
        };
        let most_held = u16::try_from(most_held).unwrap_or(u16::MAX);
        let step =
            settings.ledger.timeout.max(CONFIRM_TIMEOUT).max(DECIDING_TIME + pipeline.source.max_duration()) + SLACK;
        Self {
            sessions: Sessions::new(pipeline.component, &settings.plan()),
            pipeline: Pipeline::Checks(pipeline),
            workers: 1,
            batch,
            prefetch: prefetch(settings, component).min(most_held),
            step,
        }
    }

    pub(super) fn component(&self) -> Component {
        match &self.pipeline {
            Pipeline::Credits(pipeline) => pipeline.component,
            Pipeline::Checks(pipeline) => pipeline.component,
        }
    }

    /// Whether its messages are committed as credits, one transaction after the other.
    pub(super) fn is_credits(&self) -> bool {
        matches!(self.pipeline, Pipeline::Credits(_))
    }

    /// While the brake is engaged: why, and when it is released.
    pub(super) fn brake(&self) -> Option<(Outage, impl Future<Output = ()>)> {
        match &self.pipeline {
            Pipeline::Credits(_) => None,
            Pipeline::Checks(pipeline) => Some((pipeline.brake.engaged()?, pipeline.brake.until_released())),
        }
    }
}

/// How long a batch of checks waits for more: nothing waits for a check, and many small ones are asked for together.
const LINGER: Duration = Duration::from_millis(50);

/// Most bytes of check messages that are held.
const MOST_CHECK_BYTES: usize = 20 * 1024 * 1024;

/// A source's queue may be of another type than ours, and a quorum queue takes no more than this.
fn prefetch(settings: &Settings, component: Component) -> u16 {
    const MOST_OF_QUORUM: u16 = 2000;
    match component {
        Component::Source(_) => settings.broker.prefetch.min(MOST_OF_QUORUM),
        Component::Credits | Component::Checks | Component::Relay => settings.broker.prefetch,
    }
}
