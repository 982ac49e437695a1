//! What may be set, both ways of setting it, and what is refused.

use std::collections::BTreeMap;

use clap::Parser;

use crate::config::{NodeConfig, StoreMode};
use crate::daemon::accounts::{GroupId, UserId};
use crate::daemon::settings::*;
use crate::daemon::settings_in_force::settings_in_force;
use crate::log::Log;
use crate::memory_bounds::MemoryBounds;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    settings: Settings,
}

fn flags(words: &str) -> Settings {
    Command::try_parse_from(["serve"].into_iter().chain(words.split_whitespace())).unwrap().settings
}

fn refusal(text: &str) -> String {
    Settings::parse(text, "k.toml").unwrap_err().message
}

const FLAGS: &str = "--l1 8GiB --l2 fs:///a?capacity=1GiB --l2 memory: --socket /run/k.sock --http 127.0.0.1:9400 --log warn --trace /t --trace-bytes 2MiB \
    --policy mq --watermark-high-percent 90 --watermark-low-percent 50 --huge-pages --numa-node 1 --no-prefault \
    --store after-uses --store-after-uses 3 --no-checksum=false --backend-timeout-ms 5 --loading-bytes-max 1MiB \
    --writes-pending-max 6 --store-wait-ms 61 --sessions-max 7 --jobs-max 8 --session-timeout-ms 9 --socket-mode 0660 \
    --allow-users 10,root --allow-groups root --read-only-users 13 --tenant acme=root,15 --clients-max 16 \
    --connections-per-client-max 17 --sessions-per-client-max 18 --jobs-per-client-max 19 \
    --staged-bytes-per-client-max 20MiB --message-bytes-max 21KiB";

const FILE: &str = r#"
    l1 = "8GiB"
    l2 = ["fs:///a?capacity=1GiB", "memory:"]
    socket = "/run/k.sock"
    http = "127.0.0.1:9400"
    log = "warn"
    trace = "/t"
    trace_bytes = "2MiB"
    policy = "mq"
    watermark_high_percent = 90
    watermark_low_percent = 50
    huge_pages = true
    numa_node = 1
    no_prefault = true
    store = "after-uses"
    store_after_uses = 3
    no_checksum = false
    backend_timeout_ms = 5
    loading_bytes_max = "1MiB"
    writes_pending_max = 6
    store_wait_ms = 61
    sessions_max = 7
    jobs_max = 8
    session_timeout_ms = 9
    socket_mode = "0660"
    allow_users = [10, "root"]
    allow_groups = ["root"]
    read_only_users = [13]
    clients_max = 16
    connections_per_client_max = 17
    sessions_per_client_max = 18
    jobs_per_client_max = 19
    staged_bytes_per_client_max = "20MiB"
    message_bytes_max = "21KiB"
    [tenants]
    acme = ["root", 15]
"#;

#[test]
fn flags_and_file_say_the_same() {
    let (flags, file) = (flags(FLAGS), Settings::parse(FILE, "k.toml").unwrap());
    let (of_flags, of_file) = (flags.access(), file.access());
    assert_eq!(of_flags.tenants, [("acme".to_owned(), vec![0, 15])]);
    assert_eq!(of_flags.tenants, of_file.tenants);
    let bare = |settings: Settings| Settings { tenant: Vec::new(), tenants: BTreeMap::new(), ..settings };
    assert_eq!(bare(flags.clone()), bare(file.clone()));
    // Each alone is what both together are: nothing is lost on the way.
    assert_eq!(flags.clone().over(Settings::default()), flags);
    assert_eq!(Settings::default().over(file.clone()), file);
}

#[test]
fn everything_set_arrives() {
    let settings = flags(FLAGS);
    let node = settings.node(3, Log::none()).unwrap();
    assert_eq!((node.l1_bytes, node.boot, node.backend_urls.len()), (8 << 30, 3, 2));
    assert_eq!((node.huge_pages, node.numa_node, node.prefault, node.checksum), (true, Some(1), false, true));
    assert_eq!((node.eviction_policy.as_str(), node.store_mode), ("mq", StoreMode::AfterUses(3)));
    assert_eq!((node.watermark_high_percent, node.watermark_low_percent), (90, 50));
    assert_eq!((node.writes_pending_max, node.sessions_max, node.jobs_max), (6, 7, 8));
    assert_eq!((node.backend_timeout.as_millis(), node.session_timeout.as_millis()), (5, 9));
    assert_eq!((node.loading_bytes_max, node.store_wait.as_millis()), (1 << 20, 61));
    let (access, limits) = (settings.access(), settings.limits().unwrap());
    assert_eq!((access.mode, access.uids, access.gids, access.read_only_uids), (0o660, vec![10, 0], vec![0], vec![13]));
    assert_eq!((limits.clients_max, limits.connections_per_client_max, limits.sessions_per_client_max), (16, 17, 18));
    assert_eq!((limits.jobs_per_client_max, limits.staged_bytes_per_client_max), (19, 20 << 20));
    assert_eq!(limits.message_bytes_max, 21 << 10);
}

#[test]
fn flags_win_over_the_file() {
    let file = Settings::parse(FILE, "k.toml").unwrap();
    let both = flags("--l1 1GiB --l2 memory: --huge-pages=false --tenant acme=1 --tenant other=2").over(file);
    assert_eq!(
        (both.l1, both.l2.as_slice(), both.huge_pages),
        (Some(L1Size::Bytes(1 << 30)), &["memory:".to_owned()][..], Some(false))
    );
    assert_eq!((both.policy.as_deref(), both.access().tenants.len()), (Some("mq"), 2));
    assert_eq!(both.access().tenants[0].1, [1]);
}

#[test]
fn what_is_not_set_is_the_default_of_the_library() {
    let settings = flags("--l1 1MiB");
    let (node, defaults) = (settings.node(0, Log::none()).unwrap(), NodeConfig::new(1 << 20));
    assert_eq!((node.prefault, node.checksum, node.huge_pages), (true, true, false));
    assert_eq!((node.store_mode, node.session_timeout), (defaults.store_mode, defaults.session_timeout));
    assert_eq!((node.sessions_max, node.watermark_low_percent), (defaults.sessions_max, 60));
    assert_eq!((settings.access().mode, settings.limits().unwrap().clients_max), (0o600, 256));
    assert_eq!(flags("--l1 1MiB --watermark-high-percent 40").node(0, Log::none()).unwrap().watermark_low_percent, 40);
}

#[test]
fn l1_may_be_a_share_of_the_memory_there_is() {
    let memory = MemoryBounds::of_process(false).bytes().unwrap();
    let l1_bytes = |settings: Settings| settings.node(0, Log::none()).unwrap().l1_bytes;
    assert_eq!(l1_bytes(flags("--l1 50%")), memory / 2);
    assert_eq!(l1_bytes(Settings::parse("l1 = \"1 %\"", "k.toml").unwrap()), memory / 100);
    for text in ["0%", "101%", "%", "-1%", "1.5%", "50%%"] {
        let refused = refusal(&format!("l1 = {text:?}"));
        assert!(refused.contains("is no share of the memory; write 1% to 100%"), "{refused}");
    }
}

#[test]
fn an_error_names_the_line_and_the_remedy() {
    assert!(refusal("l1 = \"1GiB\"\n\nl3 = 1\n").starts_with("k.toml, line 3: unknown field `l3`, expected one of"));
    assert!(refusal("l1 = \"1GiB\"\nl2 = \"memory:\"\n").starts_with("k.toml, line 2: "));
    assert!(refusal("l1 = \"lots\"").contains("line 1: \"lots\" is no size; write 4096, 64MiB or 200GiB"));
    assert!(refusal("\nsocket_mode = \"9\"").contains("line 2: \"9\" is no file mode; write three octal digits"));
    assert!(refusal("store = \"soon\"").contains("write-through"));
    assert!(refusal("a\n").contains("line 1"));
    let nobody = "there is no user \"no such user\" on this machine: create it, or give its number";
    assert!(refusal("allow_users = [\"no such user\"]").contains(nobody));
    assert!(refusal("read_only_users = [\"no such user\"]").contains(nobody));
    assert!(refusal("[tenants]\na = [\"no such user\"]").contains(nobody));
    for wrong in ["-1", "true", "4294967296"] {
        assert!(refusal(&format!("allow_users = [{wrong}]")).contains("a name in quotes, or a number"));
    }
    assert!(refusal("allow_groups = [\"no such group\"]").contains("there is no group \"no such group\""));
    let node = |words| flags(words).node(0, Log::none()).err().unwrap().message;
    assert!(node("").contains("--l1 8GiB"));
    assert!(node("--l1 1GiB --watermark-high-percent 50 --watermark-low-percent 60").contains("not above it"));
    assert!(node("--l1 1GiB --store-after-uses 3").contains("both, or neither"));
    assert!(node("--l1 1GiB --session-timeout-ms 0").contains("at least a millisecond"));
    assert!(flags("").socket().unwrap_err().message.contains("--socket /run/kvkeep.sock"));
    assert!(flags("--message-bytes-max 1").limits().unwrap_err().message.contains("4096 to"));
}

#[test]
fn the_settings_in_force_can_be_read_again() {
    let file = Settings::parse(FILE, "k.toml").unwrap();
    let printed = settings_in_force(&Settings::default(), Some(("k.toml", &file))).unwrap();
    assert_eq!(Settings::parse(&printed, "printed").unwrap(), file, "{printed}");
    let printed = settings_in_force(&flags(FLAGS), None).unwrap();
    assert_eq!(Settings::parse(&printed, "printed").unwrap(), file, "{printed}");
    let printed = settings_in_force(&Settings::default(), None).unwrap();
    assert_eq!(Settings::parse(&printed, "printed").unwrap(), Settings::defaults(), "{printed}");
}

#[test]
fn each_setting_in_force_says_where_it_comes_from() {
    let file = Settings::parse("policy = \"lru\"\nclients_max = 3", "k.toml").unwrap();
    let words = "--l1 70% --policy mq --l2 redis://user:hidden@host --l2 fs:///a?key=hidden";
    let printed = settings_in_force(&flags(words), Some(("k.toml", &file))).unwrap();
    let lines = [
        "l1 = \"70%\" # flag",
        "policy = \"mq\" # flag",
        "clients_max = 3 # k.toml",
        "socket_mode = \"0600\" # default",
        "message_bytes_max = \"80MiB\" # default",
        "# http is not set",
        "# ---- Clients ----",
        "# Most live sessions [default: 65536]",
    ];
    for line in lines {
        assert!(printed.lines().any(|printed| printed == line), "no {line:?} in {printed}");
    }
    assert!(!printed.contains("hidden"), "{printed}");
}

#[test]
fn the_example_names_every_setting_and_its_default() {
    let example = include_str!("../../../examples/kvkeep.toml");
    let read = Settings::parse(example, "kvkeep.toml").unwrap();
    assert!(read.l1.is_some() && read.socket.is_some() && !read.l2.is_empty() && read.http.is_some());
    // Defaults stand there as comments, without a space after the sign.
    let commented: String = example
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' '))
        .fold(String::new(), |text, line| text + line + "\n");
    let shown = Settings::parse(&commented, "the comments").unwrap();
    let mut defaults = Settings::defaults();
    // Of those without a default, and where the table says more than the default does, an example of a value.
    defaults.numa_node = Some(0);
    defaults.trace = Some("/var/log/kvkeep/trace.jsonl".into());
    defaults.store_after_uses = Some(2);
    defaults.loading_bytes_max = Some(Size(1 << 30));
    defaults.staged_bytes_per_client_max = Some(Size(4 << 30));
    defaults.allow_users = vec![UserId(0), UserId(1000)];
    defaults.allow_groups = vec![GroupId(1000)];
    defaults.read_only_users = vec![UserId(1001)];
    defaults.tenants = BTreeMap::from([("acme".to_owned(), vec![UserId(1000), UserId(1001)])]);
    assert_eq!(shown, defaults);
}
