//! P8: kill -9 loses no object that was reported stored and leaves no half one, at any instant.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use kvkeep::l2::Backend;
use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};

use crate::support::fs::*;
use crate::support::random::{Random, rounds, seed};
use crate::support::test_name;

const CHILD: &str = "KVKEEP_KILL_CHILD";
const TEST: &str = "p8_kill_loses_nothing_reported_and_leaves_nothing_half";
const IN_FLIGHT: u64 = 12;

/// Lengths from one byte to several pieces, so that kills fall into every step.
fn length(number: u64) -> usize {
    [1, 4096, 70_000, 1 << 20, (2 << 20) + 777][(number % 5) as usize]
}

fn number_from(text: &str) -> u64 {
    text.trim().parse().unwrap()
}

/// Stores objects until it is killed, writing the number of each stored one to its standard output.
fn child(arguments: &str) {
    let parts: Vec<&str> = arguments.split('|').collect();
    let engine = if parts[1] == "uring" { EngineKind::Uring } else { EngineKind::Pool };
    let fs = Fs::open(options(Path::new(parts[0]), engine)).unwrap();
    let mut next = number_from(parts[2]);
    let (to, answers) = mpsc::channel();
    let mut out = std::io::stdout().lock();
    for _ in 0..IN_FLIGHT {
        fs.store(vec![storing(next, payload(next, length(next)), &to)]);
        next += 1;
    }
    loop {
        let (number, result) = answers.recv_timeout(WATCHDOG).unwrap();
        result.unwrap();
        // One write, so that a kill cannot cut a number in two.
        out.write_all(format!("stored {number}\n").as_bytes()).unwrap();
        out.flush().unwrap();
        fs.store(vec![storing(next, payload(next, length(next)), &to)]);
        next += 1;
    }
}

/// Runs a child, kills it after some of its reports and a moment more, and says what it reported.
fn round(dir: &Path, engine: &str, first: u64, random: &mut Random) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test_name(module_path!(), TEST), "--nocapture"])
        .env(CHILD, format!("{}|{engine}|{first}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let reports = random.below(40);
    let spin = random.below(2_000_000);
    let mut stored = Vec::new();
    let mut line = String::new();
    while (stored.len() as u64) < reports {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child ended by itself");
        stored.extend(line.trim().rsplit_once("stored ").map(|(_, number)| number_from(number)));
    }
    for step in 0..spin {
        std::hint::black_box(step);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    stored.extend(rest.lines().filter_map(|line| Some(number_from(line.rsplit_once("stored ")?.1))));
    stored
}

#[test]
fn p8_kill_loses_nothing_reported_and_leaves_nothing_half() {
    if let Ok(arguments) = std::env::var(CHILD) {
        return child(&arguments);
    }
    let rounds = rounds("KVKEEP_KILL_ROUNDS", 20);
    let mut random = Random(seed("KVKEEP_KILL_SEED"));
    for engine in engines() {
        let name = if engine == EngineKind::Uring { "uring" } else { "pool" };
        let dir = tempfile::tempdir().unwrap();
        let mut reported = 0;
        for at in 0..rounds {
            let first = at * 1_000_000;
            let stored = round(dir.path(), name, first, &mut random);
            reported += stored.len();
            let fs = Fs::open(FsOptions { shared: Some(false), ..options(dir.path(), engine) }).unwrap();
            verify(&fs, dir.path(), first, &stored);
            // Room for the next round.
            let all: Vec<u64> = (first..first + stored.len() as u64 + 2 * IN_FLIGHT).collect();
            deleted(&fs, &all);
            assert_eq!(fs.usage().objects, 0);
        }
        assert!(rounds < 20 || reported > 0, "every child was killed before it stored anything");
    }
}

/// Everything reported is there; everything there is whole; the count is that of the directory; no rubbish is left.
fn verify(fs: &Fs, dir: &Path, first: u64, stored: &[u64]) {
    let listed: HashSet<_> = fs.list(None).into_iter().map(|(key, _)| key).collect();
    for &number in stored {
        assert!(listed.contains(&key(number)), "object {number} was reported and is lost");
        check(fs, number, length(number));
    }
    let known: Vec<u64> = (first..first + 1000).filter(|&number| listed.contains(&key(number))).collect();
    known.iter().for_each(|&number| check(fs, number, length(number)));
    assert_eq!(known.len(), listed.len(), "an object that nobody stored");
    let files = files(dir);
    let paths: HashSet<PathBuf> = files.iter().map(|(path, _)| path.clone()).collect();
    assert!(known.iter().all(|&number| paths.contains(&file(dir, number))));
    assert_eq!(files.len(), listed.len(), "rubbish is left: {paths:?}");
    let usage = fs.usage();
    assert_eq!(usage.objects, files.len() as u64);
    assert_eq!(usage.bytes, files.iter().map(|(_, len)| len.next_multiple_of(4096)).sum::<u64>());
}
