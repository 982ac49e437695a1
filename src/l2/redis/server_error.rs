//! Errors that a server answers with: what each means for the request and for those after it.

use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_PERMISSION, Status};

/// The consequence of an error for other requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consequence {
    /// None: it is about this request.
    Nothing,
    /// The server cannot serve for a while.
    Pause,
    /// The connection leads to the wrong server, or is not what it was: connect anew.
    Reconnect,
}

/// Bytes of an error's sentence that are shown.
const SHOWN: usize = 120;

/// An error of the server, with its consequence. `command` is what we asked for.
pub fn server_error(text: &str, command: &str) -> (Error, Consequence) {
    let code = text.split_ascii_whitespace().next().unwrap_or_default();
    let (status, consequence, remedy): (Status, Consequence, &str) = match code {
        "OOM" => (
            KVKEEP_ERR_NO_MEMORY,
            Consequence::Nothing,
            "give the server more maxmemory, or let it evict (maxmemory-policy allkeys-lru)",
        ),
        "LOADING" => (KVKEEP_ERR_IO, Consequence::Pause, "wait until the server has loaded its data"),
        "MASTERDOWN" => (KVKEEP_ERR_IO, Consequence::Pause, "wait until its master is back, or name the master"),
        "CLUSTERDOWN" | "TRYAGAIN" => (KVKEEP_ERR_IO, Consequence::Pause, "wait until all slots are served"),
        "BUSY" => (KVKEEP_ERR_IO, Consequence::Pause, "a script blocks the server: wait, or end it by SCRIPT KILL"),
        "READONLY" => (KVKEEP_ERR_IO, Consequence::Reconnect, "this is a replica: name the master"),
        "MOVED" | "ASK" => {
            (KVKEEP_ERR_IO, Consequence::Nothing, "the server is one of a cluster: write redis+cluster://")
        }
        "NOAUTH" => (KVKEEP_ERR_PERMISSION, Consequence::Reconnect, "write redis://user:password@host"),
        "WRONGPASS" => (KVKEEP_ERR_PERMISSION, Consequence::Reconnect, "check the user and the password"),
        "NOPERM" => (
            KVKEEP_ERR_PERMISSION,
            Consequence::Nothing,
            "allow the user ~<prefix>* and +get +set +getrange +unlink +touch +expire +strlen +scan +info +dbsize, and with \
             read_from=replica +role +wait",
        ),
        "MISCONF" | "NOREPLICAS" => (KVKEEP_ERR_IO, Consequence::Nothing, "look into the server's log"),
        _ => (KVKEEP_ERR_IO, Consequence::Nothing, "look into the server's log"),
    };
    (Error::new(status, format!("the server refuses {command}: {}; {remedy}", shown(text))), consequence)
}

/// As much of an error as may be shown: some servers repeat the arguments, a password among them.
pub fn shown(text: &str) -> &str {
    let text = text.find(", with args").map_or(text, |at| &text[..at]);
    &text[..text.floor_char_boundary(SHOWN)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::redis::server_error::Consequence::{Nothing, Pause, Reconnect};

    #[test]
    fn an_error_has_a_status_a_consequence_and_a_remedy() {
        for (text, status, consequence, remedy) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", KVKEEP_ERR_NO_MEMORY, Nothing, "allkeys-lru"),
            ("LOADING Redis is loading the dataset in memory", KVKEEP_ERR_IO, Pause, "loaded"),
            ("MASTERDOWN Link with MASTER is down", KVKEEP_ERR_IO, Pause, "master"),
            ("CLUSTERDOWN The cluster is down", KVKEEP_ERR_IO, Pause, "slots"),
            ("READONLY You can't write against a read only replica.", KVKEEP_ERR_IO, Reconnect, "name the master"),
            ("MOVED 3999 127.0.0.1:6381", KVKEEP_ERR_IO, Nothing, "cluster"),
            ("NOAUTH Authentication required.", KVKEEP_ERR_PERMISSION, Reconnect, "password"),
            ("NOPERM this user has no permissions", KVKEEP_ERR_PERMISSION, Nothing, "+unlink"),
            ("ERR something", KVKEEP_ERR_IO, Nothing, "log"),
            ("", KVKEEP_ERR_IO, Nothing, "log"),
        ] {
            let (error, found) = server_error(text, "SET");
            assert_eq!((error.status, found), (status, consequence), "{text}");
            assert!(error.message.contains(text) && error.message.contains(remedy), "{error}");
        }
    }

    #[test]
    fn repeated_arguments_are_not_shown() {
        let text = "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'me' 'p4ss'";
        assert_eq!(shown(text), "ERR unknown command 'HELLO'");
        assert!(!server_error(text, "HELLO").0.message.contains("p4ss"));
        assert_eq!(shown(&"é".repeat(200)).len(), SHOWN);
    }
}
