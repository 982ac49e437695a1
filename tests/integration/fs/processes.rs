//! Processes that share one directory: each finds what the others store, nobody writes what is there, and what one removes
//! is an ordinary miss for the others.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kvkeep::error::KVKEEP_ERR_NOT_FOUND;
use kvkeep::l2::fs::{EngineKind, Fs};
use kvkeep::l2::{Backend, Found, Stored};

use crate::support::fs::*;
use crate::support::test_name;

const CHILD: &str = "KVKEEP_SHARE_CHILD";
const TEST: &str = "two_processes_share_a_directory";
const MARK: &str = "child: ";

fn length(number: u64) -> usize {
    [10, 4096, 70_000, (1 << 20) + 5][(number % 4) as usize]
}

fn objects(numbers: std::ops::Range<u64>) -> Vec<(u64, usize)> {
    numbers.map(|number| (number, length(number))).collect()
}

/// Stores all of them and says how many were written.
fn written(fs: &Fs, numbers: std::ops::Range<u64>) -> usize {
    let results = store_all(fs, &objects(numbers));
    results.into_iter().filter(|result| *result.as_ref().unwrap() == Stored::Written).count()
}

/// Does what it is told, a line at a time, and answers each with a number.
fn child(arguments: &str) {
    let (dir, engine) = arguments.split_once('|').unwrap();
    let engine = if engine == "uring" { EngineKind::Uring } else { EngineKind::Pool };
    let fs = open(Path::new(dir), engine);
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let range = number(1)..number(2);
        let answer = match words[0] {
            "store" => written(&fs, range) as u64,
            "check" => range.map(|number| check(&fs, number, length(number))).count() as u64,
            "delete" => deleted(&fs, &range.collect::<Vec<u64>>()),
            _ => unreachable!("{line}"),
        };
        println!("{MARK}{answer}");
    }
}

struct Other {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Other {
    fn start(dir: &Path, engine: EngineKind) -> Other {
        let name = if engine == EngineKind::Uring { "uring" } else { "pool" };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test_name(module_path!(), TEST), "--nocapture"])
            .env(CHILD, format!("{}|{name}", dir.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Other { process, to, from }
    }

    fn tell(&mut self, what: &str, numbers: std::ops::Range<u64>) {
        writeln!(self.to, "{what} {} {}", numbers.start, numbers.end).unwrap();
    }

    fn hear(&mut self) -> u64 {
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the other process ended by itself");
            // The test harness may write before it on the same line.
            if let Some((_, number)) = line.trim_end().split_once(MARK) {
                return number.parse().unwrap();
            }
        }
    }

    fn ask(&mut self, what: &str, numbers: std::ops::Range<u64>) -> u64 {
        self.tell(what, numbers);
        self.hear()
    }

    fn end(mut self) {
        drop(self.to);
        std::io::copy(&mut self.from, &mut std::io::sink()).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

#[test]
fn two_processes_share_a_directory() {
    if let Ok(arguments) = std::env::var(CHILD) {
        return child(&arguments);
    }
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = open(dir.path(), engine);
        let mut other = Other::start(dir.path(), engine);

        // What one stores the other finds, loads whole and does not write again.
        assert_eq!(other.ask("store", 0..20), 20);
        let numbers: Vec<u64> = (0..21).collect();
        let found = lookup(&fs, &numbers, true).unwrap();
        assert!((0..20).all(|at| found[at] == Found::Present(length(at as u64) as u64)));
        assert_eq!(found[20], Found::Absent);
        unpin(&fs, &numbers[..20]);
        numbers[..20].iter().for_each(|&number| check(&fs, number, length(number)));
        assert_eq!(written(&fs, 10..30), 10);
        assert_eq!(other.ask("check", 0..30), 30);

        // Both store the same at once: each object is published by one of them, and both read all of them.
        other.tell("store", 100..200);
        let ours = written(&fs, 100..200);
        assert_eq!(other.hear() as usize + ours, 100);
        assert_eq!(other.ask("check", 100..200), 100);
        (100..200).for_each(|number| check(&fs, number, length(number)));

        // Gone under a pin of this process: that load fails as a miss, and lookups learn it.
        assert_eq!(cached(&fs, 5), Found::Present(length(5) as u64));
        assert_eq!(other.ask("delete", 0..10), 10);
        let buffer = kvkeep::arena::Buffer::heap(length(5)).unwrap();
        let error = load_into(&fs, vec![(5, buffer)]).remove(0).err().unwrap();
        assert_eq!(error.status, KVKEEP_ERR_NOT_FOUND);
        unpin(&fs, &[5]);
        assert_eq!(lookup(&fs, &[5], false).unwrap(), [Found::Absent]);
        assert_eq!(written(&fs, 5..6), 1);
        assert_eq!(other.ask("check", 5..6), 1);

        other.end();
        fs.close();
        let left: HashSet<_> = files(dir.path()).into_iter().map(|(path, _)| path).collect();
        let expected: HashSet<_> = (10..30).chain(100..200).chain(5..6).map(|n| file(dir.path(), n)).collect();
        assert_eq!(left, expected);
    }
}
