//! The file of a trace, and the older half of the trace beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::trace_line::TraceLine;
use crate::error::{Error, Result};

/// Fewest bytes of a trace.
pub const TRACE_BYTES_MIN: u64 = 64 << 10;
/// Each file of a trace begins so.
const BEGINNING: &[u8] = b"{\"trace_version\":";

/// A trace that is being written: when the file has half the bytes it may have, it becomes `FILE.1` in place of an older one,
/// and another begins with the lines that every file has.
pub struct TraceFile {
    path: PathBuf,
    file_bytes_max: u64,
    written: u64,
    file: BufWriter<File>,
    /// The first line, and those of the first spaces, within a part of a file.
    preamble: Vec<TraceLine>,
    preamble_bytes: u64,
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

fn refused(path: &Path, why: impl std::fmt::Display) -> Error {
    let path = path.display();
    Error::invalid(format!(
        "the trace {path} cannot be written: {why}; give --trace a file in a directory that this user may write"
    ))
}

/// Refuses a trace of too few bytes, and files that are there and are no trace: they would be moved away, or lost.
pub fn check_trace(path: &Path, bytes_max: u64) -> Result<()> {
    if bytes_max < TRACE_BYTES_MIN {
        return Err(Error::invalid(format!("trace-bytes is {bytes_max}: a trace needs at least {TRACE_BYTES_MIN}")));
    }
    let directory = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        return Err(refused(path, format_args!("{} is no directory", directory.display())));
    }
    check_file(path)?;
    check_file(&older(path))
}

fn check_file(path: &Path) -> Result<()> {
    let mut beginning = [0; BEGINNING.len()];
    match File::open(path).and_then(|file| file.take(BEGINNING.len() as u64).read(&mut beginning)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refused(path, error)),
        Ok(0) => Ok(()),
        Ok(_) if beginning == BEGINNING => Ok(()),
        Ok(_) => Err(refused(path, "the file is there and is no trace of kvkeep")),
    }
}

impl TraceFile {
    /// Begins a trace with its first line. A trace of an earlier run is kept as `FILE.1`.
    pub fn create(path: &Path, bytes_max: u64, first: TraceLine) -> Result<TraceFile> {
        check_trace(path, bytes_max)?;
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
            fs::rename(path, older(path)).map_err(|error| refused(path, error))?;
        }
        let file = create(path).map_err(|error| refused(path, error))?;
        let file_bytes_max = bytes_max / 2;
        let mut trace = TraceFile {
            path: path.to_owned(),
            file_bytes_max,
            written: 0,
            file,
            preamble: Vec::new(),
            preamble_bytes: 0,
        };
        trace.begin(first).map_err(|error| refused(path, error))?;
        Ok(trace)
    }

    /// Writes a line that every file of the trace begins with, as long as those lines take no more than a quarter of one. Later ones
    /// are in one file alone.
    pub fn begin(&mut self, line: TraceLine) -> io::Result<()> {
        self.write(&line)?;
        let bytes = serde_json::to_vec(&line)?.len() as u64 + 1;
        if self.preamble_bytes + bytes <= self.file_bytes_max / 4 {
            self.preamble_bytes += bytes;
            self.preamble.push(line);
        }
        self.flush()
    }

    /// Writes a line.
    pub fn write(&mut self, line: &TraceLine) -> io::Result<()> {
        if self.written >= self.file_bytes_max {
            self.rotate()?;
        }
        self.put(line)
    }

    /// Hands all lines to the kernel.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn put(&mut self, line: &TraceLine) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.written += text.len() as u64;
        self.file.write_all(&text)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        fs::rename(&self.path, older(&self.path))?;
        self.file = create(&self.path)?;
        self.written = 0;
        let preamble = std::mem::take(&mut self.preamble);
        let written = preamble.iter().try_for_each(|line| self.put(line));
        self.preamble = preamble;
        written
    }
}

/// A new file that only this user may read: it shows which requests began alike.
fn create(path: &Path) -> io::Result<BufWriter<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(BufWriter::with_capacity(1 << 16, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> TraceLine {
        TraceLine { timestamp: Some(n), stored: Some(vec![n; 100]), ..TraceLine::default() }
    }

    fn first() -> TraceLine {
        TraceLine { trace_version: Some(1), ..TraceLine::default() }
    }

    fn read(path: &Path) -> Vec<TraceLine> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn the_newest_lines_are_kept_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut trace = TraceFile::create(&path, TRACE_BYTES_MIN, first()).unwrap();
        let space = TraceLine { space: Some(7), model: Some("m".to_owned()), ..TraceLine::default() };
        trace.begin(space.clone()).unwrap();
        let lines: Vec<TraceLine> = (1000..2000).map(line).collect();
        lines.iter().for_each(|line| trace.write(line).unwrap());
        trace.flush().unwrap();
        let (new, old) = (read(&path), read(&older(&path)));
        let bytes = fs::metadata(&path).unwrap().len() + fs::metadata(older(&path)).unwrap().len();
        assert!(bytes <= TRACE_BYTES_MIN + 1000 && bytes > TRACE_BYTES_MIN / 2, "{bytes}");
        assert!([&new, &old].iter().all(|file| file[..2] == [first(), space.clone()]));
        // Together they are the end of the trace, without a hole.
        let kept = [&old[2..], &new[2..]].concat();
        assert_eq!(kept, lines[lines.len() - kept.len()..]);

        // Another run keeps them as the older file.
        drop(trace);
        TraceFile::create(&path, TRACE_BYTES_MIN, first()).unwrap();
        assert_eq!((read(&path), read(&older(&path))), (vec![first()], new));
    }

    #[test]
    fn spaces_without_end_leave_room_for_requests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut trace = TraceFile::create(&path, TRACE_BYTES_MIN, first()).unwrap();
        for space in 0..5000 {
            let model = Some(format!("model {space}"));
            trace.begin(TraceLine { space: Some(space), model, ..TraceLine::default() }).unwrap();
        }
        (0..20).for_each(|n| trace.write(&line(n)).unwrap());
        trace.flush().unwrap();
        let bytes = fs::metadata(&path).unwrap().len() + fs::metadata(older(&path)).unwrap().len();
        assert!(bytes <= TRACE_BYTES_MIN + 1000, "{bytes}");
        let kept = [read(&older(&path)), read(&path)].concat();
        assert_eq!(kept.iter().filter(|line| line.stored.is_some()).count(), 20);
    }

    #[test]
    fn a_file_that_is_no_trace_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "mine").unwrap();
        let refusal = |path: &Path, bytes| TraceFile::create(path, bytes, first()).map(drop).unwrap_err().message;
        let message = refusal(&path, 1 << 20);
        assert!(message.contains("is no trace of kvkeep") && message.contains("give --trace"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let beside = dir.path().join("trace.1");
        fs::write(&beside, "mine, too").unwrap();
        assert!(refusal(&dir.path().join("trace"), 1 << 20).contains("trace.1 cannot be written: the file is there"));
        assert_eq!(fs::read_to_string(&beside).unwrap(), "mine, too");
        fs::remove_file(&beside).unwrap();
        assert!(refusal(dir.path(), 1 << 20).contains("cannot be written"));
        assert!(refusal(&dir.path().join("none/trace"), 1 << 20).contains("is no directory"));
        assert!(refusal(&dir.path().join("trace"), 100).contains("at least 65536"));
    }
}
