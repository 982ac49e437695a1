//! The shapes of a space: which pool or object defines them, and which objects they keep out.

use super::{key, l1, session, space};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_INVALID, KVKEEP_OK};
use crate::l1::slot::Ref;
use crate::l1::{L1, LoadReader};
use crate::shape::{Piece, Shape, ShapeTag};

fn shape(group: u32, block_bytes: u64) -> Shape {
    Shape::new(0, group, 1, [Piece { layer: 0, part: 0, block_bytes }].into_iter())
}

fn load(l1: &L1, number: u32) -> Ref {
    let staged = l1.stage_loads(0, std::iter::once((&key(number), 4096, 0)), false);
    staged.into_iter().next().unwrap().unwrap().0
}

fn lands(l1: &L1, number: u32, tag: ShapeTag) -> bool {
    l1.commit_load(load(l1, number), tag, &[], false).is_some()
}

fn objects(l1: &L1) -> u64 {
    l1.gauges().1.objects
}

#[test]
fn the_first_pool_of_a_rank_and_group_defines_their_shape() {
    let l1 = l1(StoreMode::Never, 8);
    let space = space(&l1, 0);
    l1.declare_shapes(space, &[shape(0, 64), shape(1, 128)]).unwrap();
    l1.declare_shapes(space, &[shape(1, 128), shape(2, 64)]).unwrap();
    let error = l1.declare_shapes(space, &[shape(3, 64), shape(1, 64)]).unwrap_err();
    assert_eq!(error.status, KVKEEP_ERR_INVALID);
    for words in ["group 1", "128 bytes a block", "64 bytes a block", "layout of kvkeep_space_options"] {
        assert!(error.message.contains(words), "{error}");
    }
    // Nothing of a call that was refused is remembered.
    l1.declare_shapes(space, &[shape(3, 4096)]).unwrap();
}

#[test]
fn an_object_of_another_shape_is_not_committed() {
    let l1 = l1(StoreMode::Never, 8);
    l1.declare_shapes(space(&l1, 0), &[shape(0, 64)]).unwrap();
    assert!(!lands(&l1, 1, shape(0, 128).tag));
    assert_eq!((objects(&l1), l1.gauges().1.staged, l1.gauges().1.used_bytes), (0, 0, 0));
    assert!(lands(&l1, 1, shape(0, 64).tag) && lands(&l1, 2, ShapeTag::UNKNOWN));
    assert_eq!(objects(&l1), 2);
}

#[test]
fn the_shape_of_what_was_loaded_gives_way_to_that_of_a_pool_with_its_objects() {
    let l1 = l1(StoreMode::Never, 8);
    let space = space(&l1, 0);
    let (reader, tag) = (session(&l1, space), shape(0, 128).tag);
    let held = LoadReader { session: reader, count: 1, keep: true };
    assert_eq!(l1.commit_load(load(&l1, 1), tag, &[held], false), Some(vec![true]));
    assert!(lands(&l1, 2, tag));
    assert!(!lands(&l1, 3, shape(0, 64).tag), "two shapes of one group");
    l1.declare_shapes(space, &[shape(1, 64)]).unwrap();
    assert_eq!(objects(&l1), 2);
    l1.declare_shapes(space, &[shape(0, 64)]).unwrap();
    assert_eq!(objects(&l1), 0);
    // P2: the one that is held stays its reader's.
    assert!(l1.get_views(reader, &[key(1)], &mut [View::none(KVKEEP_OK)]).unwrap());
    l1.finish_read(reader, &[key(1)], 1, None).unwrap();
    assert_eq!(l1.gauges().1.used_bytes, 0);
    assert!(lands(&l1, 3, shape(0, 64).tag));
    assert_eq!(l1.declare_shapes(space, &[shape(0, 128)]).unwrap_err().status, KVKEEP_ERR_INVALID);
}
