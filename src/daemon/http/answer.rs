//! The answers of the HTTP port, path by path.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Semaphore, watch};

use super::follow::{Answer, Follow};
use super::history::{History, now_ms};
use crate::abi::Stats;
use crate::error::{Error, KVKEEP_ERR_EXPIRED, KVKEEP_ERR_INVALID, KVKEEP_ERR_NOT_FOUND};
use crate::key::{Key, unhex};
use crate::node::Node;
use crate::{openmetrics, prometheus};

const PAGE: &str = include_str!("../page.html");
const PATHS: &str = "/ (a page for people), /metrics, /healthz, /stats.json, /sessions.json?most=N, /events?from=N, \
                     /explain/session/N and /explain/key?space=N&hash=HEX&rank=R&group=G";

/// Sessions in an answer that is not asked for more or fewer.
const SESSIONS_SHOWN: u32 = 20;

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
const HTML: &str = "text/html; charset=utf-8";

/// A refusal: its HTTP status, and a sentence with the reason.
struct HttpRefusal(StatusCode, String);

impl HttpRefusal {
    fn new(status: StatusCode, sentence: impl Into<String>) -> HttpRefusal {
        HttpRefusal(status, sentence.into())
    }
}

impl From<Error> for HttpRefusal {
    fn from(error: Error) -> HttpRefusal {
        let status = match error.status {
            KVKEEP_ERR_INVALID => StatusCode::BAD_REQUEST,
            KVKEEP_ERR_NOT_FOUND => StatusCode::NOT_FOUND,
            KVKEEP_ERR_EXPIRED => StatusCode::GONE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        HttpRefusal(status, error.message)
    }
}

type Answered = Result<Response<Answer>, HttpRefusal>;

/// Answers the requests of the HTTP port.
pub struct HttpHandler {
    node: Arc<Node>,
    began: Instant,
    /// Only this machine is served, so a name that a foreign page had point here is refused.
    local: bool,
    followers: Arc<Semaphore>,
    history: Mutex<History>,
}

impl HttpHandler {
    /// A handler for a port at `address`, with at most `followers_max` readers of events.
    pub fn new(node: Arc<Node>, address: SocketAddr, followers_max: usize) -> HttpHandler {
        HttpHandler {
            node,
            began: Instant::now(),
            local: address.ip().is_loopback(),
            followers: Arc::new(Semaphore::new(followers_max)),
            history: Mutex::default(),
        }
    }

    /// Adds the statistics of now to the history.
    pub fn sample(&self) {
        self.history.lock().add(&self.stats());
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.node.stats(&mut stats);
        stats
    }

    /// Answers a request. `closing` ends a stream of events, `progress` is set when its reader takes some.
    pub fn answer(
        &self,
        request: &Request<Incoming>,
        closing: watch::Receiver<bool>,
        progress: Arc<Mutex<Instant>>,
    ) -> Response<Answer> {
        self.route(request, closing, progress).unwrap_or_else(|HttpRefusal(status, sentence)| {
            let mut response = whole(TEXT, format!("{sentence}\n"));
            *response.status_mut() = status;
            if status == StatusCode::METHOD_NOT_ALLOWED {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            response
        })
    }

    fn route(
        &self,
        request: &Request<Incoming>,
        closing: watch::Receiver<bool>,
        progress: Arc<Mutex<Instant>>,
    ) -> Answered {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let sentence = format!("{} is not known here: everything is read by GET or HEAD", request.method());
            return Err(HttpRefusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence));
        }
        if self.local && !is_local(request) {
            let sentence = "this port serves its own machine: ask for it by address or as localhost";
            return Err(HttpRefusal::new(StatusCode::FORBIDDEN, sentence));
        }
        let query = request.uri().query().unwrap_or("");
        match request.uri().path() {
            "/" => {
                no_parameters(query)?;
                Ok(whole(HTML, PAGE))
            }
            "/metrics" => {
                no_parameters(query)?;
                Ok(self.metrics(request))
            }
            "/healthz" => {
                no_parameters(query)?;
                Ok(self.health())
            }
            "/stats.json" => self.numbers(query),
            "/sessions.json" => self.sessions(query),
            "/events" => self.events(query, closing, progress),
            "/explain/key" => self.explain_key(query),
            path => match path.strip_prefix("/explain/session/") {
                Some(session) => {
                    no_parameters(query)?;
                    Ok(whole(JSON, self.node.explain_session(number("the session", session)?)?))
                }
                None => {
                    Err(HttpRefusal::new(StatusCode::NOT_FOUND, format!("there is no {path} here; there are {PATHS}")))
                }
            },
        }
    }

    /// Prometheus text, or OpenMetrics text for those who prefer it.
    fn metrics(&self, request: &Request<Incoming>) -> Response<Answer> {
        let text = self.node.metrics() + &self.node.space_metrics();
        let offers = request.headers().get_all(ACCEPT).iter().filter_map(|offer| offer.to_str().ok());
        let mut response = if openmetrics::is_wanted(&offers.collect::<Vec<&str>>().join(",")) {
            whole(OPENMETRICS, openmetrics::of_prometheus(&text))
        } else {
            whole(PROMETHEUS, text)
        };
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        response
    }

    /// Unhealthy is a cache that refuses work. A cache with a backend in trouble, or with backends that do not keep up, serves
    /// on and is called degraded.
    fn health(&self) -> Response<Answer> {
        let (poisoned, backends) = (self.node.is_poisoned(), self.node.backend_reports());
        let writes = writes(&self.stats());
        let well = writes["trouble"].is_null() && backends.iter().all(|backend| backend.trouble.is_none());
        let status = match (poisoned, well) {
            (true, _) => "poisoned",
            (false, false) => "degraded",
            (false, true) => "ok",
        };
        let mut response = whole(
            JSON,
            json!({"status": status, "poisoned": poisoned, "backends": backends, "writes": writes}).to_string(),
        );
        if poisoned {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    fn numbers(&self, query: &str) -> Answered {
        let [after] = parameters(query, ["history_after_ms"])?;
        let stats = self.stats();
        let mut answer = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "time_ms": now_ms(),
            "uptime_ms": self.began.elapsed().as_millis() as u64,
            "poisoned": self.node.is_poisoned(),
            "newest_event": self.node.l1.events().newest(),
            "stats": prometheus::json(&stats),
            "backends": self.node.backend_reports(),
            "spaces": self.node.l1.spaces(),
            "lookups": self.node.l1.lookup_counts(None)?,
            "writes": writes(&stats),
        });
        if let Some(after) = after {
            answer["history"] = self.history.lock().json(number("history_after_ms", after)?);
        }
        Ok(whole(JSON, answer.to_string()))
    }

    fn sessions(&self, query: &str) -> Answered {
        let [most] = parameters(query, ["most"])?;
        let most = most.map_or(Ok(SESSIONS_SHOWN), |most| number("most", most))?;
        Ok(whole(JSON, self.node.explain_holders(most)))
    }

    fn events(&self, query: &str, closing: watch::Receiver<bool>, progress: Arc<Mutex<Instant>>) -> Answered {
        let [from] = parameters(query, ["from"])?;
        let from = number("from", from.unwrap_or("0"))?;
        let events = self.node.l1.events();
        self.node.l1.keep_events().map_err(|error| HttpRefusal::new(StatusCode::SERVICE_UNAVAILABLE, error.message))?;
        if from > events.newest() + 1 {
            let sentence = format!(
                "from is {from}, but the newest event has the number {}: begin with from=0 after the daemon was started again",
                events.newest()
            );
            return Err(HttpRefusal::new(StatusCode::BAD_REQUEST, sentence));
        }
        let Ok(place) = self.followers.clone().try_acquire_owned() else {
            let sentence = "as many readers of events as may be are there: end one, or try again later";
            return Err(HttpRefusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence));
        };
        let follow = Follow::new(self.node.clone(), from, closing, progress, place);
        Ok(response(LINES, Answer::Follow(Box::new(follow))))
    }

    fn explain_key(&self, query: &str) -> Answered {
        let [space, hash, rank, group] = parameters(query, ["space", "hash", "rank", "group"])?;
        let (Some(space), Some(hash)) = (space, hash) else {
            let sentence = "which key? Give /explain/key?space=N&hash=HEX, and rank=R and group=G where they are not 0";
            return Err(HttpRefusal::new(StatusCode::BAD_REQUEST, sentence));
        };
        let Some(hash) = unhex(hash) else {
            let sentence = format!("hash is {hash:?}, it must be 64 hexadecimal digits");
            return Err(HttpRefusal::new(StatusCode::BAD_REQUEST, sentence));
        };
        let key =
            Key { hash, rank: number("rank", rank.unwrap_or("0"))?, group: number("group", group.unwrap_or("0"))? };
        Ok(whole(JSON, self.node.explain_key(number("space", space)?, &key)?))
    }
}

/// Whether the backends keep up with the commits.
fn writes(stats: &Stats) -> serde_json::Value {
    json!({
        "pending": stats.writes_pending,
        "pending_max": stats.writes_pending_max,
        "dropped_recently": stats.stores_dropped_recently,
        "trouble": prometheus::backlog(stats),
    })
}

fn response(kind: &'static str, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

fn whole(kind: &'static str, text: impl Into<Bytes>) -> Response<Answer> {
    response(kind, Answer::Whole(text.into()))
}

/// Whether a request names this machine: by address or as localhost, or not at all.
fn is_local(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn number<N: std::str::FromStr>(name: &str, text: &str) -> Result<N, HttpRefusal> {
    text.parse().map_err(|_| {
        HttpRefusal::new(StatusCode::BAD_REQUEST, format!("{name} is {text:?}, it must be a whole number that fits"))
    })
}

/// The values of the parameters `known`; any other is refused.
fn parameters<'a, const N: usize>(query: &'a str, known: [&str; N]) -> Result<[Option<&'a str>; N], HttpRefusal> {
    let mut values = [None; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match known.iter().position(|known| *known == name) {
            Some(place) => values[place] = Some(value),
            None => {
                let sentence = match N {
                    0 => format!("{name:?} is not known here: no parameter is"),
                    _ => format!("{name:?} is not known here; known are {}", known.join(", ")),
                };
                return Err(HttpRefusal::new(StatusCode::BAD_REQUEST, sentence));
            }
        }
    }
    Ok(values)
}

fn no_parameters(query: &str) -> Result<(), HttpRefusal> {
    parameters(query, []).map(|[]| ())
}
