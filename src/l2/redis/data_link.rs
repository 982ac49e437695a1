//! The thread of one connection for values: it keeps the connection up and runs its requests.

use std::sync::Arc;

use super::back_off::BackOff;
use super::node_queue::LinkKind;
use super::pipeline::Pipeline;
use super::redis_node::RedisNode;
use super::redis_state::closed;

/// The body of data thread `number`. Returns once the node is closed and nothing waits.
pub fn run_data_link(node: &Arc<RedisNode>, number: usize) {
    let mut back_off = BackOff::default();
    loop {
        let silences = node.silences();
        match node.connect() {
            Ok(connection) => {
                node.connected(LinkKind::Data);
                let mut pipeline = Pipeline::new(node, number, connection, silences);
                let outcome = pipeline.run();
                if pipeline.answered {
                    back_off.worked();
                }
                let Err(error) = outcome else { return };
                node.disconnected(LinkKind::Data, &error);
                node.give_back(pipeline.abandon(), &error);
            }
            Err(error) => node.connect_failed(LinkKind::Data, &error),
        }
        let pause = back_off.pause();
        if pause > 0 && node.closing().is_none() {
            node.bell(number).sleep(pause);
        }
        if node.closing().is_some() {
            return node.refuse_waiting(LinkKind::Data, &closed());
        }
    }
}
