//! Sessions' regions, registered with CUDA so that the DMA engines read and write slots themselves.
//!
//! Registering takes a millisecond a MiB, and so does taking it back, so a thread of its own does both
//! ([`super::registration`]). Until a region is registered its tensors are staged through pinned
//! memory.

use std::collections::HashMap;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use gpulet_abi::region::Region;

use super::gpu::Gpu;
use super::registration::Registration;

/// Pages that the device copies from and to.
const PAGE_BYTES: usize = 4096;

/// A region with its registration, which is taken back first.
struct Registered {
    _registration: Registration,
    _region: Arc<Region>,
}

enum Order {
    Register { number: u32, region: Arc<Region> },
    Drop(Registered),
}

struct Mapped {
    region: Arc<Region>,
    registered: Option<Registered>,
    /// Where the device sees the arena.
    device: Option<u64>,
}

/// All regions that commands may name.
pub(super) struct Regions {
    mapped: HashMap<u32, Mapped>,
    orders: Sender<Order>,
    done: Receiver<(u32, Option<Registered>, u64)>,
    waiting: usize,
}

/// A slot as host and device see it.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub data: NonNull<u8>,
    pub bytes: usize,
    /// The device's address of it, once the region is registered.
    pub device: Option<u64>,
}

impl Regions {
    pub(super) fn start(gpu: &Arc<Gpu>) -> io::Result<Regions> {
        let (orders, received) = channel();
        let (answers, done) = channel();
        let gpu = Arc::clone(gpu);
        let thread = Builder::new().name("registrar".to_owned());
        thread.spawn(move || run(&gpu, &received, &answers))?;
        Ok(Regions { mapped: HashMap::new(), orders, done, waiting: 0 })
    }

    pub(super) fn map(&mut self, number: u32, region: Region) {
        let region = Arc::new(region);
        let order = Order::Register { number, region: Arc::clone(&region) };
        self.waiting += usize::from(self.orders.send(order).is_ok());
        self.mapped.insert(number, Mapped { region, registered: None, device: None });
    }

    pub(super) fn unmap(&mut self, number: u32) {
        if let Some(registered) = self.mapped.remove(&number).and_then(|it| it.registered) {
            // The thread ends only with this value.
            let _ = self.orders.send(Order::Drop(registered));
        }
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.mapped.contains_key(&number)
    }

    /// Takes note of registrations that are through.
    pub(super) fn update(&mut self) {
        while self.waiting > 0 {
            let Ok((number, registered, device)) = self.done.try_recv() else { return };
            self.waiting -= 1;
            match (self.mapped.get_mut(&number), registered) {
                (Some(mapped), Some(registered)) => {
                    mapped.registered = Some(registered);
                    mapped.device = Some(device);
                }
                (None, Some(registered)) => drop(self.orders.send(Order::Drop(registered))),
                // It stays staged.
                (_, None) => {}
            }
        }
    }

    pub(super) fn slot(&self, number: u32, slot: u32) -> Result<Slot, &'static str> {
        let mapped = self.mapped.get(&number).ok_or("unknown region")?;
        let geometry = mapped.region.geometry();
        if slot >= geometry.slot_count {
            return Err("slot is outside of the arena");
        }
        let device = mapped.device.map(|arena| arena + u64::from(slot) * geometry.slot_bytes);
        let bytes = geometry.slot_bytes as usize;
        Ok(Slot { data: mapped.region.slot(slot), bytes, device })
    }
}

fn run(gpu: &Gpu, orders: &Receiver<Order>, answers: &Sender<(u32, Option<Registered>, u64)>) {
    if let Err(error) = gpu.device.bind() {
        tracing::error!("registrar: {error}");
    }
    while let Ok(order) = orders.recv() {
        let (number, region) = match order {
            Order::Register { number, region } => (number, region),
            Order::Drop(registered) => {
                drop(registered);
                continue;
            }
        };
        let geometry = region.geometry();
        let bytes = geometry.slot_bytes as usize * geometry.slot_count as usize;
        // SAFETY: the arena is part of the region's mapping, which `Registered` keeps alive longer
        // than the registration.
        let registration =
            unsafe { Registration::new(region.slot(0), bytes.next_multiple_of(PAGE_BYTES)) };
        let answer = match registration {
            Ok(registration) => {
                let device = registration.device_address();
                let registered = Registered { _registration: registration, _region: region };
                (number, Some(registered), device)
            }
            Err(error) => {
                tracing::warn!("session region {number} stays staged: {error}");
                (number, None, 0)
            }
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}
