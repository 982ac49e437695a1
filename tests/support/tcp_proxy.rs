//! A TCP proxy on loopback: it passes bytes on between clients and a server, holds them back, cuts connections or turns bits.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

/// What becomes of the server's answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// They are passed on.
    Fair,
    /// Nothing is passed on until the weather changes, in neither direction.
    Still,
    /// Each connection is cut after so many bytes of answers.
    Cut(u64),
    /// One bit of each connection's answers is turned, after so many bytes.
    Turn(u64),
}

struct Sky {
    weather: Mutex<Weather>,
    changed: Condvar,
    /// How often the bytes of `counted` went to the server.
    count: AtomicU64,
    counted: &'static [u8],
}

/// A proxy. Its connections end with the process.
pub struct TcpProxy {
    pub address: SocketAddr,
    sky: Arc<Sky>,
}

impl TcpProxy {
    /// Before the server at `to`. Counts the packets to the server that begin with `counted`.
    pub fn start(to: SocketAddr, counted: &'static str) -> TcpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sky = Arc::new(Sky {
            weather: Mutex::new(Weather::Fair),
            changed: Condvar::new(),
            count: AtomicU64::new(0),
            counted: counted.as_bytes(),
        });
        let above = sky.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A server that is down refuses: so does the proxy.
                let Ok(server) = TcpStream::connect(to) else { continue };
                let (back, forth) = ((server.try_clone().unwrap(), client.try_clone().unwrap()), (client, server));
                let (sky_back, sky_forth) = (above.clone(), above.clone());
                std::thread::spawn(move || pass(back.0, back.1, &sky_back, true));
                std::thread::spawn(move || pass(forth.0, forth.1, &sky_forth, false));
            }
        });
        TcpProxy { address, sky }
    }

    pub fn set(&self, weather: Weather) {
        *self.sky.weather.lock() = weather;
        self.sky.changed.notify_all();
    }

    /// The packets counted since the last call.
    pub fn take_count(&self) -> u64 {
        self.sky.count.swap(0, Ordering::Relaxed)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, sky: &Sky, is_answer: bool) {
    let (mut bytes, mut passed) = (vec![0; 64 << 10], 0u64);
    while let Ok(got @ 1..) = from.read(&mut bytes) {
        let weather = {
            let mut weather = sky.weather.lock();
            while *weather == Weather::Still {
                sky.changed.wait(&mut weather);
            }
            *weather
        };
        if !is_answer && bytes[..got].starts_with(sky.counted) {
            sky.count.fetch_add(1, Ordering::Relaxed);
        }
        let mut now = got;
        match weather {
            Weather::Cut(after) if is_answer => now = got.min(after.saturating_sub(passed) as usize),
            Weather::Turn(at) if is_answer && (passed..passed + got as u64).contains(&at) => {
                bytes[(at - passed) as usize] ^= 4;
            }
            _ => {}
        }
        if to.write_all(&bytes[..now]).is_err() || now < got {
            break;
        }
        passed += got as u64;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
