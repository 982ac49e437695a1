//! A proxy to a Redis server that sends one way at a time, so that round trips can be counted.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// After so long a silence a side has said all that it says before it hears the other.
const QUIET: Duration = Duration::from_millis(50);

/// It runs as long as this process.
pub struct HalfDuplex {
    pub port: u16,
    lookups: Arc<AtomicU64>,
}

impl HalfDuplex {
    pub fn start(server: u16) -> HalfDuplex {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let lookups = Arc::new(AtomicU64::new(0));
        let counted = lookups.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let counted = counted.clone();
                std::thread::spawn(move || pass_on(client, server, &counted));
            }
        });
        HalfDuplex { port, lookups }
    }

    /// Times that a client asked for the heads of objects, and waited for the answer before it asked on.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }
}

/// All that comes until it is quiet. None at the end of the connection.
fn hear(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut heard, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    stream.set_read_timeout(None).ok()?;
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return None,
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(_) if !heard.is_empty() => return Some(heard),
            Err(_) => return None,
        }
        stream.set_read_timeout(Some(QUIET)).ok()?;
    }
}

fn pass_on(mut client: TcpStream, server: u16, lookups: &AtomicU64) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    loop {
        let asked = hear(&mut client)?;
        lookups.fetch_add(u64::from(asked.windows(8).any(|word| word == b"GETRANGE")), Ordering::Relaxed);
        server.write_all(&asked).ok()?;
        client.write_all(&hear(&mut server)?).ok()?;
    }
}
