//! Every request that a client makes, as one table.

use std::time::Duration;

use super::frame::{Field, Fields, Frame, malformed};
use crate::abi::{KVKEEP_EXTRA_COUNT_MAX, KVKEEP_KEYS_MAX};
use crate::config::{GroupRule, Mode, Policy, PrefetchRequest, SpaceSpec};
use crate::control::tokens::Ranks;
use crate::error::Result;
use crate::key::Key;
use crate::shape::Shape;

const RULES_MAX: usize = 64;

macro_rules! requests {
    ($($(#[$doc:meta])* $number:literal $name:ident { $($field:ident: $kind:ty),* },)*) => {
        /// A request. Its answer has the status of the call in its head, then what the call fills in, or why it failed.
        #[allow(missing_docs)]
        pub enum Request<'a> {
            $($(#[$doc])* $name { $($field: $kind),* },)*
        }

        impl<'a> Request<'a> {
/// Writes the request into a frame.
            pub fn encode(&self, frame: &mut Frame) {
                match self {
                    $(Request::$name { $($field),* } => {
                        frame.begin($number);
                        $(frame.put($field);)*
                    })*
                }
            }

            /// How many kinds there are; they have the numbers from 1 on.
            #[cfg(test)]
            pub const KINDS: u32 = [$($number),*].len() as u32;

            /// Reads the request of `kind`; every value is checked.
            pub fn decode(kind: u32, mut fields: Fields<'a>) -> Result<Request<'a>> {
                let request = match kind {
                    $($number => Request::$name { $($field: fields.take::<$kind>()?),* },)*
                    _ => return Err(malformed("no such request")),
                };
                fields.end()?;
                Ok(request)
            }
        }
    };
}

requests! {
/// Begins a client, on its connection for pushes.
    1 Hello { version: u32, read_only: bool, observer: bool },
/// Begins a request connection of a client, which looks so long for an answer before it sleeps.
    2 Attach { version: u32, client: u64, secret: u64, spin_us: u32 },
    /// Ends the client's sessions and jobs, before it closes.
    3 Bye {},
    4 OpenSpace { spec: SpaceSpec },
    5 AddBackend { url: &'a str },
    6 RemoveBackend { backend: u64 },
    7 Flush { timeout_ms: u32 },
    8 BeginSession { space: u64, request_id: &'a str, timeout_ms: u32 },
    9 EndSession { session: u64 },
    10 AbortSession { session: u64 },
    11 AppendTokens { session: u64, tokens: &'a [u32] },
    12 SessionKeys { session: u64, first_chunk: u64, ranks: Ranks, count: u64 },
    13 ReserveWrite { session: u64, keys: &'a [Key], sizes: &'a [u64], temporary: bool },
    14 FinishWrite { session: u64, keys: &'a [Key], statuses: bool },
    15 AbortWrite { session: u64, keys: &'a [Key], statuses: bool },
    16 FinishWriteAndReserveRead { session: u64, keys: &'a [Key], extra: Extra },
    17 ReserveRead { session: u64, keys: &'a [Key], extra: Extra },
    18 FinishRead { session: u64, keys: &'a [Key], extra: Extra, statuses: bool },
    19 FinishReadTokens { session: u64, first_token: u64, last_token: u64, ranks: Ranks, extra: Extra },
    20 GetViews { session: u64, keys: &'a [Key] },
    21 Touch { space: u64, keys: &'a [Key], statuses: bool },
    22 Retain { space: u64, keys: &'a [Key], priority: u32, ttl_ms: u32, statuses: bool },
    23 Delete { space: u64, keys: &'a [Key], statuses: bool },
    24 Clear { space: u64, force: bool },
    25 SubmitPrefetch { session: u64, keys: &'a [Key], request: PrefetchRequest, ticket: u64 },
    26 QueryLookupHits { job: u64 },
    27 QueryJob { job: u64 },
    28 QueryBitmap { job: u64, bytes: u64 },
    29 Wait { job: u64, timeout_ms: u32 },
    30 Cancel { job: u64 },
    31 ReleaseJob { job: u64 },
    32 GetStats {},
    33 Metrics {},
    34 ExplainKey { space: u64, key: Key },
    35 ExplainSession { session: u64 },
    36 ReadEvents { next: u64, count: u64 },
    37 BeginCopy { session: u64, space: u64, shapes: &'a [Shape] },
    38 Evict { space: u64, keys: &'a [Key], statuses: bool },
    39 QueryKeys { space: u64, keys: &'a [Key] },
    40 QuerySpace { space: u64 },
    41 ForgetSpace { space: u64 },
    42 DeclareShapes { space: u64, shapes: &'a [Shape] },
    /// Asks nothing: the daemon answers it while other calls take their time.
    43 Ping {},
    44 NoteUnregistered { memlock: bool },
    45 ReserveWaiting { session: u64, keys: &'a [Key], sizes: &'a [u64], wait_ms: u32 },
    46 ExplainRefusal { session: u64, of_space: bool },
    47 RenewSession { session: u64 },
    48 SetQuota { space: u64, quota_bytes: u64 },
    49 QuerySession { session: u64 },
    50 QueryBackends {},
    51 QueryPrefixLengths { job: u64 },
    52 CloseSpace { space: u64 },
    53 Resume { job: u64 },
    54 TailKeys { session: u64, tail_tokens: u32, ranks: Ranks, count: u64 },
    55 ExplainHolders { most: u32 },
    56 QueryMisses { space: u64 },
    57 ExplainMisses {},
    58 ListSpaces {},
}

impl Request<'_> {
    /// Whether it asks for numbers or reasons, and takes and changes nothing.
    pub fn only_looks(&self) -> bool {
        matches!(
            self,
            Request::Bye {}
                | Request::Ping {}
                | Request::GetStats {}
                | Request::Metrics {}
                | Request::ExplainKey { .. }
                | Request::ExplainSession { .. }
                | Request::ExplainHolders { .. }
                | Request::ListSpaces {}
                | Request::ExplainRefusal { .. }
                | Request::QuerySpace { .. }
                | Request::QuerySession { .. }
                | Request::QueryBackends {}
                | Request::QueryMisses { .. }
                | Request::ExplainMisses {}
                | Request::QueryKeys { .. }
        )
    }
}

/// An extra_count, 0 to [`KVKEEP_EXTRA_COUNT_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extra(pub u32);

impl Field<'_> for Extra {
    fn put(&self, frame: &mut Frame) {
        frame.put(&self.0);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Extra> {
        match fields.take()? {
            extra if extra <= KVKEEP_EXTRA_COUNT_MAX as u32 => Ok(Extra(extra)),
            _ => Err(malformed("an extra_count is out of range")),
        }
    }
}

impl Field<'_> for Ranks {
    fn put(&self, frame: &mut Frame) {
        frame.put(&self.0).put(&self.1).put(&self.2);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Ranks> {
        Ok((fields.take()?, fields.take()?, fields.take()?))
    }
}

impl Field<'_> for SpaceSpec {
    fn put(&self, frame: &mut Frame) {
        frame.put(&self.model.as_str()).put(&self.layout.as_str()).put(&self.tenant.as_str());
        frame.put(&self.chunk_tokens).put(&self.quota_bytes).put(&self.generation);
    }

    fn take(fields: &mut Fields<'_>) -> Result<SpaceSpec> {
        let spec = SpaceSpec {
            model: fields.take::<&str>()?.to_owned(),
            layout: fields.take::<&str>()?.to_owned(),
            tenant: fields.take::<&str>()?.to_owned(),
            chunk_tokens: fields.take()?,
            quota_bytes: fields.take()?,
            generation: fields.take()?,
        };
        let named = !spec.model.is_empty() && spec.chunk_tokens > 0;
        named.then_some(spec).ok_or_else(|| malformed("a space has no model or no tokens in a chunk"))
    }
}

fn millis(duration: Duration) -> u32 {
    duration.as_millis().min(u128::from(u32::MAX)) as u32
}

fn take_millis(fields: &mut Fields<'_>) -> Result<Duration> {
    Ok(Duration::from_millis(u64::from(fields.take::<u32>()?)))
}

impl Field<'_> for Mode {
    fn put(&self, frame: &mut Frame) {
        let (mode, window): (u32, u32) = match *self {
            Mode::Prefix => (0, 0),
            Mode::Window(chunks) => (1, chunks),
            Mode::Any => (2, 0),
        };
        frame.put(&mode).put(&window);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Mode> {
        match (fields.take::<u32>()?, fields.take::<u32>()?) {
            (0, 0) => Ok(Mode::Prefix),
            (1, chunks @ 1..) => Ok(Mode::Window(chunks)),
            (2, 0) => Ok(Mode::Any),
            _ => Err(malformed("a mode is unknown")),
        }
    }
}

/// The way of notification stays with the client.
impl Field<'_> for PrefetchRequest {
    fn put(&self, frame: &mut Frame) {
        frame.put(&Extra(self.extra_count)).put(&self.objects_per_chunk).put(&self.mode);
        frame.put(&(self.group_rules.len() as u32));
        self.group_rules.iter().for_each(|rule| {
            frame.put(&rule.group).put(&rule.mode);
        });
        let policy: u32 = match self.policy {
            Policy::BestEffort => 0,
            Policy::Wait => 1,
            Policy::Deadline => 2,
        };
        frame.put(&policy).put(&self.deadline.map_or(0, |deadline| millis(deadline).max(1)));
        frame.put(&millis(self.lookup_timeout)).put(&millis(self.lookup_interval).max(1));
        frame.put(&self.temporary).put(&(self.priority as u32)).put(&self.pause_after_lookup);
    }

    fn take(fields: &mut Fields<'_>) -> Result<PrefetchRequest> {
        let Extra(extra_count) = fields.take()?;
        let (objects_per_chunk, mode) = (fields.take::<u32>()?, fields.take()?);
        let rules = fields.take::<u32>()? as usize;
        if objects_per_chunk == 0 || rules > RULES_MAX || (mode == Mode::Any && rules > 0) {
            return Err(malformed("a prefetch asks what no caller can ask"));
        }
        let group_rules = (0..rules)
            .map(|_| Ok(GroupRule { group: fields.take()?, mode: fields.take()? }))
            .collect::<Result<Vec<GroupRule>>>()?;
        if group_rules.iter().any(|rule| rule.mode == Mode::Any) {
            return Err(malformed("a group's rule has no length"));
        }
        let policy = match fields.take::<u32>()? {
            0 => Policy::BestEffort,
            1 => Policy::Wait,
            2 => Policy::Deadline,
            _ => return Err(malformed("a policy is unknown")),
        };
        let deadline = take_millis(fields)?;
        let request = PrefetchRequest {
            extra_count,
            objects_per_chunk,
            mode,
            group_rules,
            policy,
            deadline: (!deadline.is_zero()).then_some(deadline),
            lookup_timeout: take_millis(fields)?,
            lookup_interval: take_millis(fields)?,
            temporary: fields.take()?,
            priority: fields.take::<u32>()? as i32,
            pause_after_lookup: fields.take()?,
            ..PrefetchRequest::default()
        };
        let paced = !request.lookup_interval.is_zero();
        paced.then_some(request).ok_or_else(|| malformed("a pause between two askings is 0"))
    }
}

/// Refuses more items than a batch may have.
pub fn check_count(count: u64) -> Result<usize> {
    let fits = (1..=KVKEEP_KEYS_MAX as u64).contains(&count);
    fits.then_some(count as usize).ok_or_else(|| malformed("a count is out of range"))
}
