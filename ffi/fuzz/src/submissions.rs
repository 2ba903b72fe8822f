//! A hostile client beside an honest one: the input says what the hostile one writes into its
//! region, what executors report, and when the dispatcher has its turns. The clock is the input's
//! too.
//!
//! After every turn the dispatcher's books must add up (`check`), only the hostile session may have
//! broken a rule, and the honest one must have its answer. At the end nothing may be left over.

mod check;
mod far;
mod honest;
mod hostile;
mod world;

use arbitrary::{Result, Unstructured};
use gpulet_abi::status::Status;

use world::World;

/// Steps of one input, so that no input takes long.
const STEPS_MAX: usize = 256;

/// Sessions and executors that may be lost, for they are most of what an input costs.
const LOSSES_MAX: u32 = 3;

/// Runs the steps that the input says.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    // An input that ends early means no more steps.
    let Ok(mut world) = World::new(&mut input) else { return };
    for _ in 0..STEPS_MAX {
        let over = input.is_empty() || world.loss_count > LOSSES_MAX;
        if over || step(&mut world, &mut input).is_err() {
            break;
        }
    }
    world.wind_up();
}

fn step(world: &mut World, input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=18u8)? {
        0 | 1 => world.hostile.submit(input, world.now_ns)?,
        2 => world.hostile.cancel(input)?,
        3 => world.hostile.poke(input)?,
        4 => world.hostile.move_tail(input)?,
        5 => world.hostile.move_head(input)?,
        6 => world.hostile.reap(),
        7 | 8 => {
            // From a nanosecond to about a second.
            let delay_ns = 1u64 << input.int_in_range(0..=30u8)?;
            world.turn(world.now_ns.saturating_add(delay_ns));
        }
        9 => world.doze(),
        10 => {
            let which = input.int_in_range(0..=2u8)?;
            world.lose_executor(which.min(1).into(), which == 2);
        }
        11 => world.honest.submit(&world.ids, world.now_ns, input.int_in_range(1..=9u8)?.into()),
        12 => world.retire(input.int_in_range(0..=7u8)?),
        13 => world.dispatcher.draining = !world.dispatcher.draining,
        14 => world.reconnect(Status::Ok),
        15 => world.kill_hung(1 << input.int_in_range(30..=45u8)?),
        16 | 17 => {
            if let Some(far) = &mut world.far[input.int_in_range(0..=1usize)?] {
                far.report(input)?;
            }
        }
        _ => {
            if let Some(far) = &mut world.far[input.int_in_range(0..=1usize)?] {
                far.scribble(input)?;
            }
        }
    }
    Ok(())
}
