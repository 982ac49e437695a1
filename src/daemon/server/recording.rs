//! The requests that are noted in a trace, if the daemon records one.

use std::sync::Arc;

use crate::abi::{KeyState, View};
use crate::cache::Cache;
use crate::config::{Mode, PrefetchRequest, SpaceSpec};
use crate::daemon::trace_recorder::{RecordedLookup, TraceRecorder};
use crate::error::KVKEEP_OK;
use crate::key::Key;
use crate::node::Node;

/// Notes the requests of all clients. Without a recorder it does nothing.
pub(super) struct Recording {
    node: Arc<Node>,
    recorder: Option<Arc<TraceRecorder>>,
}

/// Where the answer of a lookup is noted.
pub(super) struct AnswerNote {
    recorder: Arc<TraceRecorder>,
    lookup: u64,
}

impl AnswerNote {
    /// The lookup found so many chunks.
    pub fn found(&self, chunks: u32) {
        self.recorder.found(self.lookup, chunks, None);
    }
}

fn is_ok(view: &View) -> bool {
    view.status == KVKEEP_OK as i32
}

impl Recording {
    /// Notes what is asked of `node`.
    pub fn new(node: Arc<Node>, recorder: Option<Arc<TraceRecorder>>) -> Recording {
        Recording { node, recorder }
    }

    /// The recorder and the number of a session's space; nothing for a session that is gone.
    fn of_session(&self, session: u64) -> Option<(&Arc<TraceRecorder>, u64)> {
        let recorder = self.recorder.as_ref()?;
        let space = self.node.l1.space_of_session(session).ok()?;
        Some((recorder, space.tag.number()))
    }

    /// A space was opened.
    pub fn opened_space(&self, number: u64, spec: &SpaceSpec) {
        if let Some(recorder) = &self.recorder {
            recorder.space(number, spec);
        }
    }

    /// Whether anything is noted.
    pub fn is_on(&self) -> bool {
        self.recorder.is_some()
    }

    /// A prefetch is about to be submitted.
    pub fn asks(&self, session: u64, keys: &[Key], request: &PrefetchRequest) -> Option<AnswerNote> {
        let (recorder, space) = self.of_session(session)?;
        let (objects_per_chunk, any) = (request.objects_per_chunk, request.mode == Mode::Any);
        let lookup = recorder.lookup(&RecordedLookup { session, space, keys, objects_per_chunk, any, l1_only: false });
        Some(AnswerNote { recorder: recorder.clone(), lookup })
    }

    /// Shares of keys were asked for in L1, with these answers.
    pub fn read(&self, session: u64, keys: &[Key], views: &[View]) {
        let Some((recorder, space)) = self.of_session(session) else { return };
        let asked = RecordedLookup { session, space, keys, objects_per_chunk: 1, any: true, l1_only: true };
        let lookup = recorder.lookup(&asked);
        let missing: Vec<u32> = (0..views.len()).filter(|&i| !is_ok(&views[i])).map(|i| i as u32).collect();
        let found = (views.len() - missing.len()) as u32;
        let has_gap = missing.first().is_some_and(|&first| first < found);
        recorder.found(lookup, found, has_gap.then_some(missing));
    }

    /// A session began that copies for another.
    pub fn copies(&self, session: u64, copy_of: u64) {
        if let Some(recorder) = &self.recorder {
            recorder.copies(session, copy_of);
        }
    }

    /// Keys were to be committed. Those that L1 has now are noted as stored.
    pub fn committed(&self, session: u64, keys: &[Key]) {
        let Some((recorder, space)) = self.of_session(session) else { return };
        let mut states = vec![KeyState::default(); keys.len()];
        if self.node.query_keys(space, keys, &mut states).is_ok() {
            let stored = keys.iter().zip(&states).filter(|(_, state)| state.size > 0);
            let stored: Vec<(Key, u64)> = stored.map(|(key, state)| (*key, state.size)).collect();
            recorder.stored(session, space, &stored);
        }
    }

    /// Keys were committed and are read, by these views.
    pub fn committed_and_read(&self, session: u64, keys: &[Key], views: &[View]) {
        let Some((recorder, space)) = self.of_session(session) else { return };
        let stored = keys.iter().zip(views).filter(|(_, view)| is_ok(view));
        let stored: Vec<(Key, u64)> = stored.map(|(key, view)| (*key, view.size)).collect();
        recorder.stored(session, space, &stored);
    }

    /// A session was ended. One that was aborted is not noted: nothing that it used counts as used.
    pub fn ended(&self, session: u64) {
        if let Some(recorder) = &self.recorder {
            recorder.ended(session);
        }
    }
}
