//! The requests of a trace, played to a simulated cache in their order.
//!
//! In a recorded trace a session's lookups, its stores and its end are events of their own, since other sessions come between. A session
//! that misses in the simulated cache what it found in the recorded one would have computed it: that is stored with the session's
//! next store, or at its end.

use hashbrown::{HashMap, HashSet};

use super::simulation::{AskedBlock, SimulatedLookup, SimulatedSession, Simulation};
use super::trace::{Trace, TraceEvent, TraceRequest};

/// A session that has not ended.
#[derive(Default)]
struct PlayedSession {
    held: SimulatedSession,
    /// Each object counts once for its session.
    asked: HashSet<u64>,
    /// Found when it was recorded, and missing now.
    owed: Vec<AskedBlock>,
}

/// Plays a trace to one cache.
pub struct RequestPlayer<'a> {
    trace: &'a Trace,
    simulation: Simulation,
    any: bool,
    sessions: HashMap<u64, PlayedSession>,
    /// Sessions that copy for others.
    copies: HashMap<u64, u64>,
}

impl<'a> RequestPlayer<'a> {
    /// With `any`, each block of every request counts for itself.
    pub fn new(trace: &'a Trace, simulation: Simulation, any: bool) -> RequestPlayer<'a> {
        RequestPlayer { trace, simulation, any, sessions: HashMap::new(), copies: HashMap::new() }
    }

    /// Plays the whole trace, calls `played` after each event, and gives the cache back.
    pub fn play(mut self, mut played: impl FnMut()) -> Simulation {
        for event in &self.trace.events {
            match event {
                TraceEvent::Asked(request) => self.ask(request),
                TraceEvent::Stored { session, ids } => self.store(*session, ids),
                TraceEvent::Copies { session, copy_of } => {
                    self.copies.insert(*session, *copy_of);
                }
                TraceEvent::Ended { session } => self.end(*session),
            }
            played();
        }
        self.simulation
    }

    fn blocks(&self, ids: &[u64]) -> Vec<AskedBlock> {
        ids.iter().map(|&id| AskedBlock { id, bytes: self.trace.bytes_of(id) }).collect()
    }

    fn ask(&mut self, request: &TraceRequest) {
        let blocks = self.blocks(&request.hash_ids);
        let lookup = SimulatedLookup {
            blocks: &blocks,
            per_chunk: request.objects_per_chunk,
            any: self.any || request.any,
            l1_only: request.l1_only,
        };
        let Some(number) = request.session else { return self.simulation.serve(&lookup) };
        let number = self.copies.get(&number).copied().unwrap_or(number);
        let session = self.sessions.entry(number).or_default();
        let fresh: Vec<bool> = request.hash_ids.iter().map(|&id| session.asked.insert(id)).collect();
        let is_fresh = |chunk: usize| fresh[chunk * lookup.per_chunk..][..lookup.per_chunk].contains(&true);
        let held = self.simulation.look_up(&mut session.held, &lookup, is_fresh);
        let found = (0..blocks.len() / lookup.per_chunk).filter(|&chunk| request.was_found(chunk) && is_fresh(chunk));
        for chunk in found {
            self.simulation.counts.recorded_hits += 1;
            let objects = chunk * lookup.per_chunk..(chunk + 1) * lookup.per_chunk;
            session.owed.extend(objects.filter(|&i| !held[i] && fresh[i]).map(|i| blocks[i]));
        }
    }

    fn store(&mut self, number: u64, ids: &[u64]) {
        let blocks = self.blocks(ids);
        let number = self.copies.get(&number).copied().unwrap_or(number);
        let session = self.sessions.entry(number).or_default();
        let owed = std::mem::take(&mut session.owed);
        self.simulation.store(&mut session.held, &owed);
        self.simulation.store(&mut session.held, &blocks);
    }

    fn end(&mut self, number: u64) {
        if self.copies.remove(&number).is_some() {
            return;
        }
        let Some(mut session) = self.sessions.remove(&number) else { return };
        let owed = std::mem::take(&mut session.owed);
        self.simulation.store(&mut session.held, &owed);
        self.simulation.end(session.held);
    }
}
