//! The daemon's HTTP port, for people and for monitoring: numbers, health, events, reasons, and a page that draws them.
//!
//! One thread serves it. Everything is bounded: connections (a new one takes the place of the slowest), the head of a request,
//! the time for it and for the answer, the readers of events. A request has a connection of its own.

mod answer;
mod follow;
mod history;
mod places;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as BoundListener};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::select;
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::error::{Error, Result};
use crate::log::{Log, LogLevel};
use crate::node::Node;
use answer::HttpHandler;
use follow::Answer;
use places::{HttpPlaces, Stage};

/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to end when the port closes.
const FAREWELL: Duration = Duration::from_secs(2);

/// How the port is opened.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Where it listens. Port 0 takes a free one.
    pub address: SocketAddr,
    /// Most connections served at once. One more takes the place of the oldest that has not asked yet.
    pub connections_max: usize,
    /// Most readers of events at once.
    pub followers_max: usize,
    /// Most bytes of a request's head.
    pub head_bytes_max: usize,
    /// Time for a request's head.
    pub head_timeout: Duration,
    /// Time for the whole of a connection; for a reader of events, between two times that it takes something.
    pub answer_timeout: Duration,
}

impl HttpOptions {
    /// All defaults, at `address`.
    pub fn new(address: SocketAddr) -> HttpOptions {
        HttpOptions {
            address,
            connections_max: 64,
            followers_max: 8,
            head_bytes_max: 16 << 10,
            head_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
        }
    }
}

/// The open port. Closed when dropped.
pub struct Http {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Http {
    /// Opens the port and serves it.
    pub fn start(node: Arc<Node>, options: HttpOptions, log: Log) -> Result<Http> {
        let address = options.address;
        let failed = |what: &str, error: &std::io::Error| {
            Error::io(format!("{what} {address}, the HTTP port; choose another --http, or leave it out"), error)
        };
        let listener = BoundListener::bind(address).map_err(|error| failed("listening on", &error))?;
        listener.set_nonblocking(true).map_err(|error| failed("preparing", &error))?;
        let address = listener.local_addr().map_err(|error| failed("naming", &error))?;
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(|error| failed("preparing", &error))?;
        let (stop, stopped) = watch::channel(false);
        let handler = Arc::new(HttpHandler::new(node, address, options.followers_max));
        let serve = move || {
            runtime.block_on(async {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve(listener, &handler, &options, stopped, &log).await,
                    Err(error) => log.write(LogLevel::Error, || format!("the HTTP port is not served: {error}")),
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("kvkeep-http".to_owned())
            .spawn(serve)
            .map_err(|error| Error::io("starting the thread kvkeep-http", &error))?;
        Ok(Http { address, stop, thread: Mutex::new(Some(thread)) })
    }

    /// The address that it listens on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets those that are served end, and closes the port.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(
    listener: TcpListener,
    handler: &Arc<HttpHandler>,
    options: &HttpOptions,
    mut stopped: watch::Receiver<bool>,
    log: &Log,
) {
    let mut places = HttpPlaces::default();
    let mut connections = JoinSet::new();
    let mut sampling = interval(history::INTERVAL);
    sampling.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let closing = stopped.clone();
    loop {
        select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            _ = sampling.tick() => handler.sample(),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if places.free_place(options.connections_max.max(1)) => {
                    let (handler, options, closing, stage) = (handler.clone(), options.clone(), closing.clone(), Stage::default());
                    let known = stage.clone();
                    let task = connections.spawn(async move { converse(stream, handler, &options, closing, stage).await });
                    places.take(task, known);
                    // A connection that had to go is closed before the next is accepted.
                    yield_now().await;
                }
                Ok(_) => {}
                Err(error) => {
                    log.often("http accept", LogLevel::Warn, || {
                        format!("a connection to the HTTP port was not taken: {error}")
                    });
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

/// Answers one request. Cuts off a peer that takes too long to ask or to take the answer.
async fn converse(
    stream: TcpStream,
    handler: Arc<HttpHandler>,
    options: &HttpOptions,
    closing: watch::Receiver<bool>,
    stage: Stage,
) {
    let progress = Arc::new(Mutex::new(Instant::now()));
    let noted = progress.clone();
    let service = service_fn(move |request| {
        let answer = handler.answer(&request, closing.clone(), noted.clone());
        stage.answered(matches!(answer.body(), Answer::Follow(_)));
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.head_timeout)
            .max_buf_size(options.head_bytes_max.max(8 << 10))
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    loop {
        let until = *progress.lock() + options.answer_timeout;
        select! {
            // What went wrong on a connection is its peer's affair.
            _ = connection.as_mut() => return,
            () = sleep_until(until.into()) => if *progress.lock() + options.answer_timeout <= Instant::now() { return },
        }
    }
}
