//! A proxy before a server that delays, cuts, truncates and reorders bytes, by seed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::random::Random;

/// Most bytes that are forwarded at a time.
const PIECE: usize = 16 << 10;

/// How often what happens to a piece: one time in so many; 0 never.
#[derive(Clone, Copy, Default, Debug)]
pub struct Mischief {
    /// It comes later, by up to 20 ms.
    pub delay: u64,
    /// The connection ends before it.
    pub cut: u64,
    /// A part of it comes, then the connection ends.
    pub truncate: u64,
    /// Its two halves change places.
    pub reorder: u64,
    /// It and all that follows never come, and the connection stays.
    pub swallow: u64,
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<ProxyState>,
}

struct ProxyState {
    to: u16,
    mischief: Mutex<Mischief>,
    random: Mutex<Random>,
    /// Pieces that something happened to.
    done: AtomicU64,
}

impl Proxy {
    /// A proxy before the server at port `to` of this machine, which forwards everything until it is told otherwise.
    pub fn start(to: u16, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mischief, random, done) = (Mutex::default(), Mutex::new(Random(seed)), AtomicU64::new(0));
        let shared = Arc::new(ProxyState { to, mischief, random, done });
        let state = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(("127.0.0.1", state.to)) else { continue };
                let ends = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
                for (from, to) in ends {
                    let state = state.clone();
                    std::thread::spawn(move || state.forward(from, to));
                }
            }
        });
        Proxy { port, shared }
    }

    pub fn set(&self, mischief: Mischief) {
        *self.shared.mischief.lock() = mischief;
    }

    /// Pieces that something has happened to.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }
}

impl ProxyState {
    fn draw(&self, chances: u64) -> bool {
        let drawn = chances > 0 && self.random.lock().one_in(chances);
        self.done.fetch_add(u64::from(drawn), Ordering::Relaxed);
        drawn
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let mischief = *self.mischief.lock();
            if self.draw(mischief.delay) {
                let wait = self.random.lock().below(20);
                std::thread::sleep(Duration::from_millis(wait));
            }
            if self.draw(mischief.cut) {
                break;
            }
            if self.draw(mischief.swallow) {
                // What comes is read, so that the sender is not stopped.
                while matches!(from.read(&mut bytes), Ok(1..)) {}
                break;
            }
            if self.draw(mischief.truncate) {
                let _ = to.write_all(&bytes[..count / 2]);
                break;
            }
            if self.draw(mischief.reorder) {
                bytes[..count].rotate_left(count / 2);
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
