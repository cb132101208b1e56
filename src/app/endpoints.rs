//! The HTTP endpoints `/metrics`, `/healthz` and `/readyz`.

use crate::observe::{events, metrics, status::Status};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use metrics_exporter_prometheus::PrometheusHandle;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};

/// The interval at which histograms are aggregated, so that they do not grow between scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The maximum number of simultaneous connections.
const MAX_CONNECTIONS: usize = 64;
/// The deadline for the header of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum lifetime of a connection, also of one that is reused.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// The data that the endpoints serve.
#[derive(Clone)]
pub(super) struct Endpoints {
    /// For `/metrics`.
    pub metrics: PrometheusHandle,
    /// For `/readyz`.
    pub status: Arc<Status>,
}

/// Binds the address and serves in the background until the process ends. Reticks the bound address, whose port the
/// system may have chosen.
pub(super) async fn serve(listen: SocketAddr, endpoints: Endpoints) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let bound = listener.local_addr()?;
    let handle = endpoints.metrics.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            handle.run_upkeep();
            events::report_suppressed();
        }
    });
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(endpoints);
    tokio::spawn(accept(listener, router));
    Ok(bound)
}

/// Accepts connections, limited in lifetime and number, so that clients cannot exhaust the file descriptors of the
/// process.
async fn accept(listener: TcpListener, router: Router) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed; without a permit the client waits in the backlog of the system.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // For instance out of file descriptors: the condition may pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // The result does not matter: the connection is closed.
            let _ = tokio::time::timeout(CONNECTION_LIFETIME, connection).await;
            drop(permit);
        });
    }
}

/// Serves the metrics in the text format of Prometheus, version 0.0.4.
async fn metrics_text(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render(&endpoints.metrics))
}

/// Serves the readiness of the daemon.
async fn ready(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    match endpoints.status.not_ready() {
        // A failed payment source does not stop credits.
        None => {
            let others = endpoints.status.others_paused().map_or_else(String::new, |paused| format!("{paused}\n"));
            (StatusCode::OK, format!("ready\n{others}"))
        }
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}
