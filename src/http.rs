//! The three endpoints: `/metrics`, `/healthz`, `/readyz`.

use crate::observe::{metrics, status::Status};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// How often histograms are folded, so that they do not grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// What the endpoints tell.
#[derive(Clone)]
pub struct Endpoints {
    /// For `/metrics`.
    pub metrics: PrometheusHandle,
    /// For `/readyz`.
    pub status: Arc<Status>,
}

/// Binds, and serves in the background as long as the process lives. Returns the address, whose port the system may
/// have chosen.
pub async fn serve(listen: SocketAddr, endpoints: Endpoints) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let bound = listener.local_addr()?;
    let handle = endpoints.metrics.clone();
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(UPKEEP);
        loop {
            turns.tick().await;
            handle.run_upkeep();
        }
    });
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(endpoints);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(bound)
}

/// The content type is Prometheus's text format, version 0.0.4.
async fn metrics_text(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render(&endpoints.metrics))
}

async fn ready(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    match endpoints.status.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}
