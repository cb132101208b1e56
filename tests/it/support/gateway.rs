//! A payment service over HTTP that answers as a test says.

use super::rabbit::Tls;
use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode, Uri},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
    pub location: Option<String>,
    pub retry_after: Option<String>,
    pub delay: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, body: Bytes::new(), location: None, retry_after: None, delay: Duration::ZERO }
    }

    pub fn body(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    /// What a gateway says of a payment.
    pub fn trade(status: &str) -> Self {
        Self::body(format!(r#"{{"data": {{"status": "{status}"}}}}"#))
    }
}

type Behaviour = Box<dyn Fn(&str, &HeaderMap) -> Reply + Send>;

/// Requests at a gateway with a limit.
#[derive(Debug, Default)]
pub struct Admission {
    /// By the second of the wall clock.
    pub admitted: BTreeMap<u64, u64>,
    pub refused: u64,
}

/// Listens as long as it lives.
pub struct Gateway {
    pub port: u16,
    runtime: Option<Runtime>,
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<AtomicU64>,
}

impl Gateway {
    /// `behaviour`: from a payment's id, as it stands in the path, to an answer.
    pub fn start(behaviour: impl Fn(&str, &HeaderMap) -> Reply + Send + 'static) -> Self {
        Self::start_on(0, None, behaviour)
    }

    /// The same on a port of the test's choice, perhaps for `https`.
    pub fn start_on(
        port: u16,
        tls: Option<&Tls>,
        behaviour: impl Fn(&str, &HeaderMap) -> Reply + Send + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let behaviour: Arc<Mutex<Behaviour>> = Arc::new(Mutex::new(Box::new(behaviour)));
        let asked = Arc::new(AtomicU64::new(0));
        let (behaves, counts) = (Arc::clone(&behaviour), Arc::clone(&asked));
        let answer = move |uri: Uri, headers: HeaderMap| {
            let (behaves, counts) = (Arc::clone(&behaves), Arc::clone(&counts));
            async move {
                counts.fetch_add(1, Ordering::Relaxed);
                let id = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
                // What a test does in there may block.
                let reply = tokio::task::spawn_blocking(move || behaves.lock().unwrap()(&id, &headers)).await.unwrap();
                tokio::time::sleep(reply.delay).await;
                let mut headers = HeaderMap::new();
                if let Some(location) = reply.location {
                    headers.insert("location", location.parse().unwrap());
                }
                if let Some(wait) = reply.retry_after {
                    headers.insert("retry-after", wait.parse().unwrap());
                }
                (StatusCode::from_u16(reply.status).unwrap(), headers, reply.body)
            }
        };
        // A test may be asynchronous itself: nothing here may block on the runtime.
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(listener).unwrap()
        };
        let port = listener.local_addr().unwrap().port();
        let router: Router = Router::new().fallback(answer);
        match tls {
            None => {
                runtime.spawn(async move { axum::serve(listener, router).await });
            }
            Some(tls) => {
                runtime.spawn(serve_tls(listener, router, acceptor(tls)));
            }
        }
        Self { port, runtime: Some(runtime), behaviour, asked }
    }

    /// Answers otherwise from now on.
    pub fn behave(&self, behaviour: impl Fn(&str, &HeaderMap) -> Reply + Send + 'static) {
        *self.behaviour.lock().unwrap() = Box::new(behaviour);
    }

    /// Answers from a table; what is not in it is 404.
    pub fn table(&self, table: BTreeMap<String, Reply>) {
        self.behave(move |id, _| table.get(id).cloned().unwrap_or_else(|| Reply::status(404)));
    }

    /// Admits so many requests in each second of the wall clock, and answers 429 to the others.
    pub fn admit(&self, per_second: u64, reply: impl Fn(&str) -> Reply + Send + 'static) -> Arc<Mutex<Admission>> {
        let admission: Arc<Mutex<Admission>> = Arc::default();
        let counts = Arc::clone(&admission);
        self.behave(move |id, _| {
            let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let mut counts = counts.lock().unwrap();
            let admitted = counts.admitted.entry(second).or_default();
            if *admitted < per_second {
                *admitted += 1;
                reply(id)
            } else {
                counts.refused += 1;
                Reply::status(429)
            }
        });
        admission
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// `[pay_status.http]`, with the words of Alipay.
    pub fn settings(&self) -> String {
        format!(
            "[pay_status.http]\nurl = \"http://127.0.0.1:{}/payments/{{payment_id}}\"\nstatus_pointer = \"/data/status\"\n\
             paid = [\"TRADE_SUCCESS\"]\npending = [\"WAIT_BUYER_PAY\"]\nclosed = [\"TRADE_CLOSED\"]\ntimeout = \"1s\"\n",
            self.port
        )
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn acceptor(tls: &Tls) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(&tls.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&tls.key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
}

async fn serve_tls(listener: TcpListener, router: Router, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            // A client that does not believe us ends it here.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper_util::service::TowerToHyperService::new(router);
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}
