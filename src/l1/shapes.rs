//! The shapes of a space's objects: one for each rank and group, the same for every process that uses this L1.
//!
//! The first pool that declares a shape defines it, until the cache is closed. Before that, the first object that a backend
//! gives does so for the others of its rank and group; such a shape gives way to that of a pool, and its objects go with it. So
//! all objects of a rank and group that say their shape have one in L1, and objects do not carry it themselves.

use hashbrown::{HashMap, HashSet};

use super::{L1, State};
use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};
use crate::policy::Removal;
use crate::shape::{Shape, ShapeTag};

/// Most shapes that are remembered.
const SHAPES_MAX: usize = 1 << 16;

/// Index of the space, rank, group.
type Name = (u32, u32, u32);

enum Known {
    /// A pool has it.
    Declared(Shape),
    /// An object has it that a backend gave.
    Met(ShapeTag),
}

impl Known {
    fn tag(&self) -> ShapeTag {
        match self {
            Known::Declared(shape) => shape.tag,
            Known::Met(tag) => *tag,
        }
    }
}

/// All that are known.
#[derive(Default)]
pub(super) struct Shapes(HashMap<Name, Known>);

impl L1 {
    /// Declares the shapes that pools have in a space. Refuses all of them if one contradicts an earlier pool.
    pub fn declare_shapes(&self, space: u64, shapes: &[Shape]) -> Result<()> {
        self.with(|state| {
            let space = state.space_index(space)?;
            state.declare_shapes(space, shapes)
        })
    }
}

fn contradiction(known: &Shape, shape: &Shape) -> Error {
    let how = if known.to_string() == shape.to_string() {
        format!("{known}, of other layers or parts, or in another order")
    } else {
        format!("{known} there, {shape} here")
    };
    Error::invalid(format!(
        "objects of rank {}, group {} would look different from those of an earlier pool of the same space ({how}): say so in the \
         layout of kvkeep_space_options, so that it is another space",
        shape.rank, shape.group
    ))
}

impl State {
    pub(super) fn declare_shapes(&mut self, space: u32, shapes: &[Shape]) -> Result<()> {
        let mut new = 0;
        for shape in shapes {
            match self.shapes.0.get(&(space, shape.rank, shape.group)) {
                Some(Known::Declared(known)) if known.tag != shape.tag => return Err(contradiction(known, shape)),
                Some(_) => {}
                None => new += 1,
            }
        }
        let known = self.shapes.0.len();
        if known + new > SHAPES_MAX {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!(
                    "the layouts of {known} ranks and groups of spaces are remembered, and {SHAPES_MAX} may be: open pools of the \
                     same ones, or open the cache anew"
                ),
            ));
        }
        let mut replaced = HashSet::new();
        for shape in shapes {
            let former = self.shapes.0.insert((space, shape.rank, shape.group), Known::Declared(*shape));
            if former.is_some_and(|former| former.tag() != shape.tag) {
                replaced.insert((shape.rank, shape.group));
            }
        }
        if !replaced.is_empty() {
            self.hide_all_of(space, &replaced);
        }
        Ok(())
    }

    /// Hides the objects of some ranks and groups.
    fn hide_all_of(&mut self, space: u32, groups: &HashSet<(u32, u32)>) {
        let of_groups = |id: u32| {
            let key = self.slots.key(id);
            self.slots.space(id) == space && groups.contains(&(key.rank, key.group))
        };
        let live = self.slots.live().filter(|(id, slot)| slot.is_findable() && of_groups(*id));
        let ids: Vec<u32> = live.map(|(id, _)| id).collect();
        for id in ids {
            self.hide(id, Removal::Deleted);
            self.free_if_unused(id);
        }
    }

    /// Whether an object that a backend gave may be committed: it has the shape of the others of its rank and group, or says
    /// none, or is the first to say one.
    pub(super) fn admits_shape(&mut self, id: u32, tag: ShapeTag) -> bool {
        if tag == ShapeTag::UNKNOWN {
            return true;
        }
        let name = self.shape_name(id);
        if let Some(known) = self.shapes.0.get(&name) {
            return known.tag() == tag;
        }
        let room = self.shapes.0.len() < SHAPES_MAX;
        if room {
            self.shapes.0.insert(name, Known::Met(tag));
        }
        room
    }

    /// The shape of an object of L1.
    pub(super) fn shape_of(&self, id: u32) -> ShapeTag {
        if self.shapes.0.is_empty() {
            return ShapeTag::UNKNOWN;
        }
        let name = self.shape_name(id);
        self.shapes.0.get(&name).map_or(ShapeTag::UNKNOWN, Known::tag)
    }

    fn shape_name(&self, id: u32) -> Name {
        let key = self.slots.key(id);
        (self.slots.space(id), key.rank, key.group)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key, l1, session, space};
    use super::super::{Landed, slot::Ref};
    use super::*;
    use crate::abi::View;
    use crate::config::StoreMode;
    use crate::error::{KVKEEP_ERR_INVALID, KVKEEP_OK};
    use crate::shape::Piece;

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
        let held = Landed { session: reader, count: 1, keep: true };
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
}
