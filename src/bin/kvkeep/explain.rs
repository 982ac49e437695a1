//! `kvkeep explain`: who holds a key, since when, and why it cannot be evicted; or what a session holds.

use std::fmt::Write;

use kvkeep::cache::Cache as _;
use kvkeep::key::{Key, unhex};
use kvkeep::space_names::SpaceNames;
use serde_json::Value;

use crate::{Outcome, daemon, text};

/// Keys and sessions shown, unless all are asked for.
const SHOWN: usize = 20;

/// Say who holds what in a daemon, since when, and why it cannot be evicted
///
/// Asked about a key: where it is and who holds it. Asked about a session: its keys. Asked about nothing: every session
/// that holds something, that with most bytes first, without its keys unless --all.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  kvkeep explain unix:///run/kvkeep.sock\n  kvkeep explain unix:///run/kvkeep.sock 1048577\n  kvkeep explain unix:///run/kvkeep.sock --space 7316245889087154412 HASH:RANK:GROUP"
)]
pub struct ExplainArgs {
    /// The daemon, as unix:///PATH
    url: String,
    /// A key, as 64 hexadecimal digits or HASH:RANK:GROUP, or the number of a session
    #[arg(value_name = "KEY|SESSION")]
    about: Option<String>,
    /// The space of the key; explain shows the numbers of sessions' spaces
    #[arg(long, value_name = "NUMBER")]
    space: Option<u64>,
    /// Show everything, however much it is
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

enum About {
    Key(Key),
    Session(u64),
}

fn about(text: &str) -> Result<About, String> {
    let key = Key::parse(text).or_else(|| unhex(text).map(|hash| Key { hash, rank: 0, group: 0 }));
    key.map(About::Key).or_else(|| text.parse().ok().map(About::Session)).ok_or_else(|| {
        format!("{text:?} is neither a key nor a session: give 64 hexadecimal digits, HASH:RANK:GROUP, or a number")
    })
}

/// Asks the daemon, and prints its explanation.
pub fn run(args: &ExplainArgs) -> Outcome {
    let about = args.about.as_deref().map_or(Ok(About::Session(0)), about)?;
    let space = match (&about, args.space) {
        (About::Key(_), None) => {
            return Err(
                "a key is in a space: give --space; explain without a key shows the spaces of sessions".to_owned()
            );
        }
        (_, space) => space.unwrap_or(0),
    };
    let (answer, spaces) = daemon::once(&args.url, false, |client| {
        let answer = match &about {
            About::Key(key) => client.explain_key(space, key),
            // The keys of many sessions are many: they are asked for only where they are shown.
            About::Session(0) if !args.all && !args.json => client.explain_holders(SHOWN as u32),
            About::Session(session) => client.explain_session(*session),
        };
        // A user who may not know of all tenants sees numbers alone.
        Ok((answer.map_err(|error| error.to_string())?, daemon::spaces(client).unwrap_or_default()))
    })?;
    let value: Value =
        serde_json::from_str(&answer).map_err(|error| format!("the daemon's answer is no JSON: {error}"))?;
    let shown = if args.all { usize::MAX } else { SHOWN };
    let report = match about {
        _ if args.json => format!("{value:#}\n"),
        About::Key(_) => key_text(&value),
        About::Session(number) => sessions_text(&value, &spaces, shown, number != 0 || args.all),
    };
    text::print(&report);
    Ok(true)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

// Writing to a string cannot fail, here and below.
fn key_text(value: &Value) -> String {
    let mut report = format!("key     {}\n", word(&value["key"]));
    let objects = list(&value["l1"]);
    if objects.is_empty() {
        report += "L1      absent\n";
    }
    for object in objects {
        let (state, bytes, uses) =
            (word(&object["state"]), text::bytes(number(&object["bytes"])), number(&object["uses"]));
        let _ = write!(report, "L1      {state}, {bytes}, read {uses} times");
        for (name, words) in
            [("temporary", "temporary"), ("written", "written to L2"), ("write_pending", "to be written")]
        {
            if object[name] == true {
                let _ = write!(report, ", {words}");
            }
        }
        report.push('\n');
        if number(&object["shares"]) > 0 {
            let since = text::time(number(&object["shared_for_ms"]));
            let _ = writeln!(report, "        {} shares, the first taken {since} ago", number(&object["shares"]));
        }
        for why in list(&object["unevictable_because"]) {
            let _ = writeln!(report, "        cannot be evicted: {}", word(why));
        }
        for holder in list(&object["holders"]).iter().filter(|holder| holder["revocable"] == true) {
            let session = number(&holder["session"]);
            let _ = writeln!(
                report,
                "        but session {session} passed its deadline: its shares go when room is needed"
            );
        }
        if word(&object["state"]) == "ready" && list(&object["unevictable_because"]).is_empty() {
            report += "        may be evicted\n";
        }
    }
    for backend in list(&value["backends"]) {
        let (number, scheme, state) = (number(&backend["backend"]), word(&backend["scheme"]), word(&backend["state"]));
        let _ = write!(report, "backend {number} ({scheme}): {state}");
        match word(&backend["trouble"]) {
            "" => report.push('\n'),
            trouble => drop(writeln!(report, ", {trouble}")),
        }
    }
    report
}

/// A session in one line, and the sums of its hold on an L1 of `whole` bytes in another.
pub fn session_lines(session: &Value, whole: u64) -> [String; 2] {
    let bytes = number(&session["bytes"]);
    let name = format!(
        "session {} {} of process {}",
        number(&session["session"]),
        session["request_id"],
        number(&session["owner_pid"])
    );
    let sums = format!(
        "{} in {} keys, {:.1} % of L1; the longest shared for {}; {} staged, {} jobs running",
        text::bytes(bytes),
        text::count(number(&session["keys"])),
        text::percent(bytes, whole),
        text::time(number(&session["shared_for_ms"])),
        text::count(number(&session["staged_keys"])),
        text::count(number(&session["jobs_running"])),
    );
    [name, sums]
}

/// A space by its number, and by its names where they are among `spaces`.
fn space_name(number: u64, spaces: &[Value]) -> String {
    let named = spaces.iter().find(|space| word(&space["space"]).parse() == Ok(number));
    let names = named.and_then(|space| serde_json::from_value::<SpaceNames>(space.clone()).ok());
    names.map_or_else(|| number.to_string(), |names| format!("{number} ({names})"))
}

fn sessions_text(value: &Value, spaces: &[Value], shown: usize, keys: bool) -> String {
    let sessions = list(&value["sessions"]);
    if sessions.is_empty() {
        return "no session holds anything\n".to_owned();
    }
    let (whole, locked) = (number(&value["l1_bytes"]), number(&value["l1_locked_bytes"]));
    let holding = value["holding"].as_u64().unwrap_or(sessions.len() as u64);
    let holders =
        value["holding"].as_u64().map(|holding| format!("; {} sessions hold some of it", text::count(holding)));
    let mut report = format!(
        "L1: {} of {} cannot be evicted{}\n",
        text::bytes(locked),
        text::bytes(whole),
        holders.unwrap_or_default()
    );
    for session in sessions.iter().take(shown) {
        let left = session["expires_in_ms"].as_i64().unwrap_or(0);
        let (age, deadline) = (text::time(number(&session["age_ms"])), text::time(left.unsigned_abs()));
        let deadline = if left < 0 { format!("expired {deadline} ago") } else { format!("expires in {deadline}") };
        let [name, sums] = session_lines(session, whole);
        let (space, idle) = (space_name(number(&session["space"]), spaces), text::time(number(&session["idle_ms"])));
        let _ = writeln!(report, "{name}, space {space}: begun {age} ago, idle for {idle}, {deadline}\n  {sums}");
        if !keys {
            continue;
        }
        let held =
            list(&session["held"]).iter().map(|pair| format!("  holds {} × {}", word(&pair[0]), number(&pair[1])));
        let cleared = list(&session["held_of_cleared"]);
        let cleared =
            cleared.iter().map(|pair| format!("  holds {} × {}, cleared since", word(&pair[0]), number(&pair[1])));
        let staged = list(&session["staged"]).iter().map(|key| format!("  stages {}", word(key)));
        let jobs = list(&session["jobs"]).iter().map(|job| {
            let state = if job["done"] == true { "done" } else { "running" };
            format!("  job {}, {state}", number(&job["job"]))
        });
        let lines: Vec<String> = held.chain(cleared).chain(staged).chain(jobs).collect();
        for line in lines.iter().take(shown) {
            let _ = writeln!(report, "{line}");
        }
        if lines.len() > shown {
            let _ = writeln!(report, "  and {} more: --all shows them", text::count((lines.len() - shown) as u64));
        }
    }
    let left = holding.saturating_sub(sessions.len().min(shown) as u64);
    if left > 0 {
        let _ = writeln!(report, "and {} more sessions: --all shows them", text::count(left));
    }
    report
}
