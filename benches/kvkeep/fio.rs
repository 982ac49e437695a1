//! The comparator of the `fs` backend: fio, moving files of the same size on the same disk, around the page cache.

use std::path::Path;
use std::process::Command;

use crate::random::Random;

const DEPTHS: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
const ENGINES: [&str; 2] = ["io_uring", "libaio"];

/// What fio is to do with its files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Reads them in random order, again and again for a second.
    Read,
    /// Makes each and writes it, once.
    WriteNew,
    /// Writes each that is there, once.
    Overwrite,
}

/// fio, as far as it can be used here.
pub struct Fio {
    engine: &'static str,
}

impl Fio {
    /// Looks for fio and for an engine it may use; without, says why not.
    pub fn find(scratch: &Path) -> Option<Fio> {
        if Command::new("fio").arg("--version").output().is_err() {
            println!("fio is not installed: rows that compare with it are left out (Debian package fio)");
            return None;
        }
        let works = |engine: &&'static str| {
            let fio = Fio { engine };
            let works = fio.run(Work::WriteNew, scratch, 4096, 4, 1).is_some();
            clean(scratch);
            works
        };
        let engine = ENGINES.into_iter().find(works);
        if engine.is_none() {
            println!("fio may use neither io_uring nor libaio here: rows that compare with it are left out");
        }
        engine.map(|engine| Fio { engine })
    }

    /// GB/s over `count` files of `size` bytes in `dir` with `depth` of them under way.
    pub fn run(&self, work: Work, dir: &Path, size: u64, count: usize, depth: u32) -> Option<f64> {
        let mut fio = Command::new("fio");
        fio.args([
            "--name=kvkeep",
            "--output-format=json",
            "--direct=1",
            "--thread=1",
            "--filename_format=fio.$filenum",
        ]);
        fio.arg(format!("--directory={}", dir.display()));
        fio.arg(format!("--ioengine={}", self.engine));
        fio.args([format!("--bs={size}"), format!("--filesize={size}"), format!("--iodepth={depth}")]);
        fio.args([format!("--nrfiles={count}"), format!("--openfiles={count}")]);
        match work {
            Work::Read => fio.args([
                "--rw=randread",
                "--file_service_type=random",
                "--norandommap=1",
                "--randrepeat=0",
                "--time_based=1",
                "--runtime=1",
            ]),
            Work::WriteNew => fio.args(["--rw=write", "--create_on_open=1", "--fallocate=none"]),
            Work::Overwrite => fio.args(["--rw=randwrite", "--file_service_type=random", "--overwrite=1"]),
        };
        let output = fio.output().ok()?;
        if !output.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let json: serde_json::Value = serde_json::from_str(&text[text.find('{')?..]).ok()?;
        let side = if work == Work::Read { "read" } else { "write" };
        let rate = json["jobs"][0][side]["bw_bytes"].as_f64()?;
        (rate > 0.0).then_some(rate / 1e9)
    }

    /// The depth at which fio is fastest, tried twice each.
    pub fn best_depth(&self, work: Work, dir: &Path, size: u64, count: usize) -> u32 {
        let mut best = (0.0, 1);
        for depth in DEPTHS {
            let mut rates = 0.0;
            for _ in 0..2 {
                if work == Work::WriteNew {
                    clean(dir);
                }
                rates += self.run(work, dir, size, count, depth).unwrap_or(0.0);
            }
            if rates > best.0 {
                best = (rates, depth);
            }
        }
        best.1
    }
}

/// Files for fio to read, of random bytes, on the disk before anything is timed.
pub fn lay(dir: &Path, size: u64, count: usize, random: &mut Random) {
    let mut bytes = vec![0; size as usize];
    for i in 0..count {
        random.fill(&mut bytes);
        let path = dir.join(format!("fio.{i}"));
        std::fs::write(&path, &bytes).and_then(|()| std::fs::File::open(&path)?.sync_all()).expect("files for fio");
    }
}

/// Removes fio's files.
pub fn clean(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"fio.") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
