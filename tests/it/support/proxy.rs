//! A TCP proxy that cuts, delays or stalls what goes through it.

use super::free_port;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Works.
    Up,
    /// Every packet takes so long.
    Slow(Duration),
    /// Takes everything and delivers nothing, in both directions.
    Stalled,
    /// Every connection is ended, and none is taken.
    Cut,
}

struct Shared {
    network: Network,
    open: Vec<TcpStream>,
}

/// Listens on a port of its own and passes on to another.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
}

impl Proxy {
    pub fn to(target: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let shared = Arc::new(Mutex::new(Shared { network: Network::Up, open: Vec::new() }));
        let proxy = Self { port, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let cut = shared.lock().unwrap().network == Network::Cut;
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target));
                let Some(server) = server.ok().filter(|_| !cut) else {
                    let _ = client.shutdown(Shutdown::Both);
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || pass(from, to, &shared));
                }
                shared.lock().unwrap().open.extend([client, server]);
            }
        });
        proxy
    }

    pub fn set(&self, network: Network) {
        let mut shared = self.shared.lock().unwrap();
        shared.network = network;
        if network == Network::Cut {
            for stream in shared.open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Mutex<Shared>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 {
            break;
        }
        loop {
            let network = shared.lock().unwrap().network;
            match network {
                Network::Up | Network::Cut => break,
                Network::Slow(delay) => {
                    std::thread::sleep(delay);
                    break;
                }
                Network::Stalled => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
