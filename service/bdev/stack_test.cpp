// Layers on each other: what a request goes through, and how it comes back.

#include <boost/test/unit_test.hpp>

#include <cstring>
#include <memory>
#include <vector>

#include "base/units.h"
#include "bdev/layer.h"
#include "bdev/ram.h"
#include "reactor/reactor.h"

namespace pollux::bdev {
namespace {

using reactor::call;
using reactor::Reactor;
using reactor::ReactorGroup;
using reactor::Task;

constexpr std::uint64_t kShiftBytes = 4096;

// Leaves out the beginning of the device below. Checks that a request comes back with the frame that was pushed on it.
class Shift : public Layer {
 public:
  struct Frame {
    void (*complete)(IoRequest&);
    std::uint64_t offset_bytes;
    Shift* layer;
  };
  explicit Shift(std::shared_ptr<Bdev> below) : Layer(std::move(below), sizeof(Frame)) {}

  std::uint64_t size_bytes() const override { return Layer::size_bytes() - kShiftBytes; }
  Opening open_channel(Reactor& reactor) override {
    auto channel = co_await below().open_channel(reactor);
    if (!channel) co_return fail(std::move(channel.error()));
    co_return std::make_unique<ShiftChannel>(*this, std::move(*channel));
  }
  unsigned completed = 0;

 private:
  class ShiftChannel : public Channel {
   public:
    ShiftChannel(Shift& layer, std::unique_ptr<Channel> below) : layer_(layer), below_(std::move(below)) {}
    void submit(IoRequest& request) override {
      request.push_frame(Frame{request.complete, request.offset_bytes, &layer_});
      request.offset_bytes += kShiftBytes;
      request.complete = [](IoRequest& done) {
        const Frame& was = done.pop_frame<Frame>();
        BOOST_TEST(done.offset_bytes == was.offset_bytes + kShiftBytes);
        done.offset_bytes = was.offset_bytes;
        done.complete = was.complete;
        ++was.layer->completed;
        done.complete(done);
      };
      below_->submit(request);
    }

   private:
    Shift& layer_;
    std::unique_ptr<Channel> below_;
  };
};

struct Fixture {
  Fixture() {
    auto started = ReactorGroup::start({{.id = 0}});
    BOOST_REQUIRE(started.has_value());
    reactors = std::move(*started);
    auto made = make_ram_bdev("ram", kMiB);
    BOOST_REQUIRE(made.has_value());
    ram = std::move(*made);
  }
  std::shared_ptr<Bdev> stack(unsigned count) {
    std::shared_ptr<Bdev> top = ram;
    for (unsigned i = 0; i < count; ++i) {
      auto layer = std::make_shared<Shift>(top);
      layers.push_back(layer);
      top = std::move(layer);
    }
    return top;
  }
  std::unique_ptr<ReactorGroup> reactors;
  std::shared_ptr<Bdev> ram;
  std::vector<std::shared_ptr<Shift>> layers;
};

// What a caller finds in its request when it is complete.
struct Returned {
  IoStatus status;
  bool as_it_was;
};

Task<Result<Returned>> submit(Reactor& reactor, Bdev& device, IoOp op, std::uint64_t offset_bytes, void* data,
                              std::size_t length_bytes) {
  co_await reactor.enter();
  auto channel = co_await device.open_channel(reactor);
  if (!channel) co_return fail(std::move(channel.error()));
  struct Waiting : IoRequest {
    reactor::Completion<bool> over;
  } request;
  iovec piece{data, length_bytes};
  request.op = op;
  request.offset_bytes = offset_bytes;
  request.length_bytes = length_bytes;
  request.iov = &piece;
  request.iov_count = 1;
  request.complete = [](IoRequest& done) { static_cast<Waiting&>(done).over.set(true); };
  const auto complete = request.complete;
  (*channel)->submit(request);
  co_await request.over;
  const bool as_it_was = request.offset_bytes == offset_bytes && request.length_bytes == length_bytes &&
                         request.complete == complete && request.iov == &piece && request.framed_bytes == 0;
  co_return Returned{request.status, as_it_was};
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(stack, Fixture)

BOOST_AUTO_TEST_CASE(a_request_goes_through_every_layer_and_comes_back_as_it_was) {
  constexpr unsigned kLayers = 8;
  const auto top = stack(kLayers);
  BOOST_TEST(top->frame_bytes() == kLayers * sizeof(Shift::Frame));
  BOOST_TEST(check_stack(*top).has_value());
  std::vector<std::byte> out(4096, std::byte{0x5a});
  std::vector<std::byte> in(4096);
  const auto submitted = [&](Bdev& device, IoOp op, std::uint64_t offset, std::vector<std::byte>& data) {
    auto& reactor = reactors->main();
    const auto returned = call(reactor, submit(reactor, device, op, offset, data.data(), data.size()));
    BOOST_REQUIRE(returned.has_value());
    BOOST_TEST(returned->as_it_was);
    return returned->status;
  };
  BOOST_CHECK(submitted(*top, IoOp::kWrite, 8192, out) == IoStatus::kOk);
  BOOST_CHECK(submitted(*ram, IoOp::kRead, 8192 + kLayers * kShiftBytes, in) == IoStatus::kOk);
  BOOST_TEST((in == out));
  // Errors come up the same way.
  BOOST_CHECK(submitted(*top, IoOp::kRead, top->size_bytes(), in) == IoStatus::kInvalid);
  for (const auto& layer : layers) BOOST_TEST(layer->completed == 2U);
}

BOOST_AUTO_TEST_CASE(a_stack_that_keeps_more_with_a_request_than_there_is_room_for_is_refused) {
  const unsigned most = IoRequest::kFrameBytes / sizeof(Shift::Frame);
  BOOST_TEST(check_stack(*stack(most)).has_value());
  const auto refused = check_stack(*stack(most + 1));
  BOOST_REQUIRE(!refused.has_value());
  BOOST_CHECK(refused.error().code == ErrorCode::kUnsupported);
  BOOST_TEST(refused.error().message.find(std::to_string((most + 1) * sizeof(Shift::Frame))) != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace pollux::bdev
