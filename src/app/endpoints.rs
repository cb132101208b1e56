//! The three endpoints: `/metrics`, `/healthz`, `/readyz`.

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

/// How often histograms are folded, so that they do not grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last, however often it is used again.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// What the endpoints tell.
#[derive(Clone)]
pub(super) struct Endpoints {
    /// For `/metrics`.
    pub metrics: PrometheusHandle,
    /// For `/readyz`.
    pub status: Arc<Status>,
}

/// Binds, and serves in the background as long as the process lives. Returns the address, whose port the system may
/// have chosen.
pub(super) async fn serve(listen: SocketAddr, endpoints: Endpoints) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let bound = listener.local_addr()?;
    let handle = endpoints.metrics.clone();
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(UPKEEP);
        loop {
            turns.tick().await;
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

/// Every connection is bounded in time and all of them in number, so that no visitor can use up the process's files.
async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Closed never; without a place the visitor waits in the system's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, say: it passes, or the daemon has greater worries.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .serve_connection(TokioIo::new(stream), service);
            // However it ends, it is over.
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
            drop(place);
        });
    }
}

/// The content type is Prometheus's text format, version 0.0.4.
async fn metrics_text(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render(&endpoints.metrics))
}

async fn ready(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    match endpoints.status.not_ready() {
        // A payment source that is down stops no credit.
        None => {
            let others = endpoints.status.others_paused().map_or_else(String::new, |told| format!("{told}\n"));
            (StatusCode::OK, format!("ready\n{others}"))
        }
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}
