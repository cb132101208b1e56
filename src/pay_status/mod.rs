//! Payment sources: what knows whether a payment is paid. A table (`sql`), a service or gateway (`http`), or the table
//! first and then the gateway (`both`). `docs/concepts/checks.md` tells how each answers.

mod http;
pub mod settings;
mod sql;
mod table_then_gateway;

pub use http::{Header, HeaderError, Limits, UrlTemplate, UrlTemplateError};
pub use sql::{Identifier, TableName};

use crate::{pay_status::settings::PayStatusSettings, pipeline::ports::PaymentSource};
use std::{sync::Arc, time::Duration};

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The HTTP client cannot be made: no usable authorities, say.
    #[error("the HTTP client: {0}")]
    Client(String),
}

/// The source that is configured, if any is. Nothing is connected yet. `timeout`: the deadline of every call to a
/// database (`ledger.timeout`). `repairs`: whether a table is set right where the gateway knows better. `limits`: those of the
/// gateway, shared by all sources of this process.
pub fn source(
    settings: &PayStatusSettings,
    timeout: Duration,
    repairs: bool,
    limits: &Limits,
) -> Result<Option<Arc<dyn PaymentSource>>, SourceError> {
    Ok(match settings {
        PayStatusSettings::None => None,
        PayStatusSettings::Sql(sql) => Some(Arc::new(sql::SqlSource::new(sql, timeout))),
        PayStatusSettings::Http(http) => Some(Arc::new(http::HttpSource::new(http, limits)?)),
        PayStatusSettings::SqlThenHttp(sql, http) => {
            let table = sql::SqlSource::new(sql, timeout);
            Some(Arc::new(table_then_gateway::TableThenGateway::new(
                table,
                http::HttpSource::new(http, limits)?,
                repairs,
            )))
        }
    })
}

/// A source's own word, fit for a line of a log or a header.
fn quoted(word: &str) -> String {
    const MOST: usize = 64;
    let mut line: String = word.chars().take(MOST).flat_map(char::escape_debug).collect();
    if word.chars().nth(MOST).is_some() {
        line.push('…');
    }
    format!("\"{line}\"")
}
