//! The replicas that values are read from, by their masters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;

use super::redis_node::RedisNode;
use super::redis_options::ServerAddress;
use super::resp::RespValue;

/// The replicas of each master. Empty unless values are read from replicas.
#[derive(Default)]
pub struct ReplicaSet {
    of_masters: HashMap<ServerAddress, Vec<Arc<RedisNode>>>,
    /// Which replica comes first the next time.
    turn: AtomicUsize,
}

impl ReplicaSet {
    /// All replicas.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<RedisNode>> {
        self.of_masters.values().flatten()
    }

    /// How many replicas a master has.
    pub fn count(&self, master: &ServerAddress) -> usize {
        self.of_masters.get(master).map_or(0, Vec::len)
    }

    /// The replicas of a master that values can be read from now, each time another one first.
    pub fn ready(&self, master: &ServerAddress) -> Vec<Arc<RedisNode>> {
        let all = self.of_masters.get(master).into_iter().flatten();
        let mut ready: Vec<Arc<RedisNode>> = all.filter(|replica| replica.is_ready()).cloned().collect();
        if !ready.is_empty() {
            let first = self.turn.fetch_add(1, Ordering::Relaxed) % ready.len();
            ready.rotate_left(first);
        }
        ready
    }

    /// Replaces all replicas. Those that are known already stay as they are; `start` starts the others. Returns those that are
    /// not used any more.
    pub fn replace(
        &mut self,
        wanted: Vec<(ServerAddress, Vec<ServerAddress>)>,
        mut start: impl FnMut(&ServerAddress) -> Option<Arc<RedisNode>>,
    ) -> Vec<Arc<RedisNode>> {
        let mut known: HashMap<ServerAddress, Arc<RedisNode>> =
            self.of_masters.drain().flat_map(|(_, nodes)| nodes).map(|node| (node.address.clone(), node)).collect();
        for (master, addresses) in wanted {
            for address in addresses {
                // A master has many ranges of slots, each with the same replicas.
                let replicas = self.of_masters.entry(master.clone()).or_default();
                if !replicas.iter().any(|replica| replica.address == address) {
                    replicas.extend(known.remove(&address).or_else(|| start(&address)));
                }
            }
        }
        known.into_values().collect()
    }
}

/// The replicas that are connected to a master, as ROLE answers. None if that is no answer; a replica has no replicas.
pub fn parse_role(reply: &RespValue) -> Option<Vec<ServerAddress>> {
    let [role, _, replicas, ..] = reply.as_list()? else { return None };
    if role.as_text()? != "master" {
        return Some(Vec::new());
    }
    let address = |replica: &RespValue| match replica.as_list()? {
        [host, port, ..] => {
            let port = port.as_number().and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0)?;
            Some(ServerAddress::Tcp { host: host.as_text()?.to_owned(), port })
        }
        [] | [_] => None,
    };
    Some(replicas.as_list()?.iter().filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Option<Vec<ServerAddress>> {
        parse_role(&RespValue::parse(text, 100).unwrap().unwrap().0)
    }

    #[test]
    fn a_master_names_its_replicas_and_a_replica_none() {
        let text = b"*3\r\n$6\r\nmaster\r\n:42\r\n*2\r\n*3\r\n$3\r\n::1\r\n$4\r\n7001\r\n$2\r\n42\r\n*1\r\n$1\r\nx\r\n";
        assert_eq!(read(text), Some(vec![ServerAddress::Tcp { host: "::1".to_owned(), port: 7001 }]));
        let text = b"*5\r\n$5\r\nslave\r\n$1\r\na\r\n:7000\r\n$9\r\nconnected\r\n:42\r\n";
        assert_eq!(read(text), Some(Vec::new()));
        for text in [&b"$1\r\na\r\n"[..], b"*1\r\n$6\r\nmaster\r\n", b"-ERR no\r\n"] {
            assert_eq!(read(text), None);
        }
    }
}
