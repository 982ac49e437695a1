//! How often a store asks, and how often it sends bytes that are there already.

use super::round_trip::{hits, open};
use crate::promises::cache::{KIB, MIB, watched};
use crate::support::s3::Service;
use crate::support::tcp_proxy::TcpProxy;

#[test]
fn a_store_of_an_unknown_object_asks_only_if_it_is_large() {
    watched(|| {
        let Some(service) = Service::shared("a_store_of_an_unknown_object_asks_only_if_it_is_large") else { return };
        let (asks, writes) = (TcpProxy::start(service.address, "HEAD "), TcpProxy::start(service.address, "PUT "));
        let cache = open(&service.url_at(asks.address, ""));
        cache.store_below(0..16, 64 * KIB);
        cache.store_below(16..17, 4 * MIB - 160);
        assert_eq!((asks.take_count(), cache.stats().stores), (0, 17));
        cache.store_below(17..18, 4 * MIB);
        assert_eq!((asks.take_count(), cache.stats().stores), (1, 18));
        assert_eq!(hits(&cache, 0..18), 18);
        cache.node.close();
        let cache = open(&service.url_at(writes.address, "&depth=1"));
        cache.store_below(20..24, KIB);
        // Once more than stores: the first one shows whether the service keeps the precondition.
        assert_eq!((writes.take_count(), cache.stats().stores), (5, 4));
        assert_eq!(cache.node.backend_reports()[0].note, None);
        cache.node.close();
    });
}

#[test]
fn bytes_that_are_there_are_sent_in_vain_a_few_times_at_most() {
    watched(|| {
        let Some(service) = Service::shared("bytes_that_are_there_are_sent_in_vain_a_few_times_at_most") else {
            return;
        };
        let proxy = TcpProxy::start(service.address, "PUT ");
        let url = service.url_at(proxy.address, "&depth=1");
        let first = open(&url);
        first.store_below(0..64, KIB);
        first.node.close();
        let second = open(&url);
        proxy.take_count();
        second.store_below(0..64, KIB);
        assert_eq!((second.stats().stores, second.stats().stores_already), (0, 64));
        let sent = proxy.take_count();
        assert!((1..=8).contains(&sent), "sent {sent} of 64 objects that are there");
        // Others are not there: soon it does not ask any more.
        second.store_below(100..164, KIB);
        assert_eq!((second.stats().stores, second.stats().stores_already), (64, 64));
        second.node.close();
    });
}

#[test]
fn a_service_without_the_precondition_is_noticed_and_asked_first() {
    watched(|| {
        for how in ["refused", "ignored"] {
            let test = "a_service_without_the_precondition_is_noticed_and_asked_first";
            let Some(service) = Service::start_without_conditions(test, how) else { return };
            let proxy = TcpProxy::start(service.address, "HEAD ");
            let url = service.url_at(proxy.address, "&depth=1");
            let first = open(&url);
            first.store_below(0..8, KIB);
            let stats = first.stats();
            assert_eq!((stats.stores, stats.stores_dropped), (8, 0), "{how}");
            // All but the first, whose refusal or second store told.
            assert!(proxy.take_count() >= 7, "{how}");
            let said = first.node.backend_reports()[0].note.clone().unwrap_or_default();
            assert!(said.contains("knows no conditional put"), "{how}: {said}");
            first.node.close();
            // One that has noticed writes nothing that is there.
            let second = open(&url);
            second.store_below(100..101, KIB);
            second.store_below(0..8, KIB);
            assert_eq!((second.stats().stores, second.stats().stores_already), (1, 8), "{how}");
            assert_eq!(hits(&second, 0..8), 8);
            second.node.close();
        }
    });
}
