//! Packets on the socket between a client and the daemon, in both directions.

use std::sync::LazyLock;

use gpulet_abi::frame::{Frame, kind_of};
use gpulet_abi::layout::{
    Goodbye, Hello, ModelQuery, ModelSpec, StateQuery, StateReply, Welcome, get_text,
};
use gpulet_abi::region::Geometry;
use gpulet_abi::version;
use gpulet_daemon::connection::{Said, grant, understand};
use gpulet_daemon::limits::Limits;
use gpulet_daemon::models::Models;

static LIMITS: LazyLock<Limits> = LazyLock::new(Limits::default);

/// Gives the input to both sides as it is, and as the body of a frame of every kind.
pub fn run(input: &[u8]) {
    judge(input);
    framed::<Hello>(input);
    framed::<Welcome>(input);
    framed::<ModelQuery>(input);
    framed::<ModelSpec>(input);
    framed::<StateQuery>(input);
    framed::<StateReply>(input);
    framed::<Goodbye>(input);
}

/// The input with the right kind and size, cut or filled with zeros.
fn framed<F: Frame>(input: &[u8]) {
    let mut frame = F::blank();
    let body = &mut bytemuck::bytes_of_mut(&mut frame)[8..];
    let bytes = input.len().min(body.len());
    body[..bytes].copy_from_slice(&input[..bytes]);
    assert!(F::parse(bytemuck::bytes_of(&frame)).is_some());
    judge(bytemuck::bytes_of(&frame));
}

fn judge(packet: &[u8]) {
    gpulet_client::fuzz_packet(packet);
    match understand(packet) {
        Said::Hello(hello) => {
            assert_eq!(kind_of(packet), Some(Hello::KIND));
            check_grant(&hello);
            // Most inputs miss the magic, and no wish would ever be looked at.
            check_grant(&Hello { magic: version::MAGIC, version: version::VERSION, ..*hello });
        }
        Said::ModelQuery(name) => {
            let query = ModelQuery::parse(packet).expect("it was understood");
            assert_eq!(get_text(&query.name), Some(name.as_str()));
        }
        Said::StateQuery => assert!(StateQuery::parse(packet).is_some()),
        Said::Nonsense(rule) => assert!(!rule.is_empty()),
        Said::Nothing | Said::Goodbye => panic!("no packet says that"),
    }
}

fn check_grant(hello: &Hello) {
    let limits = &*LIMITS;
    match grant(hello, limits, &Models::default()) {
        Ok(geometry) => {
            assert!(geometry.slot_bytes >= hello.slot_bytes);
            assert!(hello.slot_count == 0 || geometry.slot_count == hello.slot_count);
            assert!(geometry.slot_count <= limits.slot_count_max);
            assert!(geometry.region_bytes <= limits.region_bytes_max);
            // What executors are told must lead to the same place.
            let again = Geometry::new(geometry.slot_bytes, geometry.slot_count);
            assert_eq!(again, Some(geometry));
        }
        Err((status, text)) => assert!((status as i32) != 0 && !text.is_empty()),
    }
}
