// SPDX-License-Identifier: Apache-2.0
#include "ram/multifd_receiver.hpp"

#include "base/thread.hpp"
#include "ram/counters.hpp"
#include "ram/packet_reader.hpp"
#include "ram/page_codec.hpp"

#include <fmt/format.h>

#include <thread>
#include <utility>

namespace migrationd::ram {

namespace {

// Of a wait that may be given up: is anything coming still?
constexpr unsigned barrier_looks = 10;

}  // namespace

using stream::MultifdMethod;
using stream::MultifdPacket;

// --- one channel ----------------------------------------------------------------------------------------------------

class MultifdReceiver::Worker {
 public:
  Worker(MultifdReceiver& owner, std::size_t number, std::unique_ptr<transports::Channel> channel, RamMap& map,
         PageStore& store)
      : owner_(owner), number_(number), channel_(std::move(channel)), reader_(*channel_), map_(map), store_(store) {}

  Result<void> start(MultifdMethod method) {
    method_ = method;
    if (method_ != MultifdMethod::none) {
      MD_TRY(decoder_, PageDecoder::make(method_));
    }
    return start_thread(thread_, "start a multifd channel", [this] {
      const auto place = owner_.roster_.enter_worker("mig/dst/recv", number_);
      auto result = run();
      // What ends a channel after the last barrier is no failure.
      if (!result && !owner_.barrier_->may_ignore_failure(number_))
        owner_.failure_.take(number_, std::move(result).error());
    });
  }
  void shut_down() noexcept { channel_->shutdown(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  std::uint64_t bytes() const noexcept { return reader_.total_read(); }
  Counter normal_pages;
  Counter zero_pages;

 private:
  // Pages of the packet that lie side by side, in its order.
  struct Run {
    GuestSpan span;
    std::size_t first = 0;  // page of the payload
    bool in_place = false;
  };

  Result<void> run() {
    while (true) {
      MD_TRY(const auto header, reader_.header());
      if (!header) return owner_.barrier_->note_end(number_);
      MD_TRY(const MultifdPacket packet, stream::decode_multifd_packet(*header, method_));
      MD_CHECK(check_number(packet));
      if (packet.has_pages()) {
        MD_CHECK(owner_.barrier_->note_pages(number_));
        MD_CHECK(take_pages(packet));
      }
      if (packet.sync()) MD_CHECK(owner_.barrier_->arrive(number_));
    }
  }

  // A source that clears its headers (QEMU from 9.0 on; its SYNC says so) counts packets when it builds them, so a
  // channel's numbers rise. One that comes again was sent twice on the way: a SYNC too many would let the main stream
  // pass a barrier before the pages that belong in front of it.
  Result<void> check_number(const MultifdPacket& packet) {
    counts_ = counts_ || (packet.sync() && packet.room() == 0);
    if (counts_ && last_number_ && packet.number() <= *last_number_)
      return wire_error(fmt::format("received packet number {} behind number {}", packet.number(), *last_number_));
    last_number_ = packet.number();
    return {};
  }

  Result<void> take_pages(const MultifdPacket& packet) {
    const auto block = map_.find(packet.block());
    if (!block) return wire_error(fmt::format("unknown ram block {}", printable(packet.block())));
    MD_CHECK(prove(packet, *block, 0, packet.normal(), normal_));
    MD_CHECK(prove(packet, *block, packet.normal(), packet.normal() + packet.zero(), zero_));
    if (packet.normal() > 0) MD_CHECK(decoder_ ? receive_encoded(packet) : receive_plain());
    for (const Run& run : zero_) MD_CHECK(store_.place_zero(run.span));
    normal_pages.add(packet.normal());
    zero_pages.add(packet.zero());
    return {};
  }

  // Nothing of a packet is used before all of it is proved.
  Result<void> prove(const MultifdPacket& packet, std::size_t block, std::size_t begin, std::size_t end,
                     std::vector<Run>& runs) const {
    runs.clear();
    for (std::size_t first = begin; first < end;) {
      std::size_t next = first + 1;
      while (next < end && packet.offset(next) == packet.offset(first) + (next - first) * page_size) ++next;
      MD_TRY(const GuestSpan span, map_.prove(block, packet.offset(first), (next - first) * page_size));
      runs.push_back({span, first - begin, false});
      first = next;
    }
    return {};
  }

  std::byte* buffer_at(std::size_t page) {
    // Not a vector: what is not used is not touched.
    if (!buffer_) buffer_.reset(new std::byte[stream::multifd_packet_data]);
    return buffer_.get() + page * page_size;
  }

  Result<void> receive_plain() {
    pieces_.clear();
    for (Run& run : normal_) {
      run.in_place = store_.receive_in_place(run.span);
      std::byte* const to = run.in_place ? map_.memory(run.span).data() : buffer_at(run.first);
      pieces_.push_back({to, run.span.length()});
    }
    MD_CHECK(reader_.payload(pieces_));
    for (const Run& run : normal_) {
      if (run.in_place) {
        store_.placed(run.span);
      } else {
        MD_CHECK(place(run));
      }
    }
    return {};
  }

  Result<void> receive_encoded(const MultifdPacket& packet) {
    payload_.resize(packet.payload_bytes());
    const iovec piece{payload_.data(), payload_.size()};
    if (!payload_.empty()) MD_CHECK(reader_.payload({&piece, 1}));
    MD_CHECK(decoder_->decode(payload_, {buffer_at(0), packet.normal() * page_size}));
    for (const Run& run : normal_) MD_CHECK(place(run));
    return {};
  }

  Result<void> place(const Run& run) {
    pieces_.clear();
    for (std::size_t page = 0; page < run.span.length() / page_size; ++page)
      pieces_.push_back({buffer_at(run.first + page), page_size});
    return store_.place(run.span, pieces_);
  }

  MultifdReceiver& owner_;
  const std::size_t number_;
  std::unique_ptr<transports::Channel> channel_;
  PacketReader reader_;
  RamMap& map_;
  PageStore& store_;
  MultifdMethod method_ = MultifdMethod::none;
  bool counts_ = false;
  std::optional<std::uint64_t> last_number_;
  std::unique_ptr<PageDecoder> decoder_;
  std::unique_ptr<std::byte[]> buffer_;
  Bytes payload_;
  std::vector<Run> normal_;
  std::vector<Run> zero_;
  std::vector<iovec> pieces_;
  std::thread thread_;
};

// --- all of them ----------------------------------------------------------------------------------------------------

MultifdReceiver::MultifdReceiver(std::unique_ptr<MultifdBarrier> barrier, StopSource& stop,
                                 ThreadRoster& roster) noexcept
    : barrier_(std::move(barrier)), roster_(roster), failure_(stop) {}

Result<std::unique_ptr<MultifdReceiver>> MultifdReceiver::start(
    std::vector<std::unique_ptr<transports::Channel>> channels, MultifdMethod method, RamMap& map, PageStore& store,
    StopSource& stop, ThreadRoster& roster) {
  MD_TRY(auto barrier, MultifdBarrier::make(channels.size(), stop));
  std::unique_ptr<MultifdReceiver> receiver(new MultifdReceiver(std::move(barrier), stop, roster));
  for (std::size_t number = 0; number < channels.size(); ++number) {
    receiver->workers_.push_back(std::make_unique<Worker>(*receiver, number, std::move(channels[number]), map, store));
  }
  for (const auto& worker : receiver->workers_) MD_CHECK(worker->start(method));
  return receiver;
}

MultifdReceiver::~MultifdReceiver() {
  barrier_->abandon();
  for (const auto& worker : workers_) worker->shut_down();
  for (const auto& worker : workers_) worker->join();
}

Result<void> MultifdReceiver::at_flush() {
  if (mode_ == Mode::per_section)
    return wire_error("a multifd synchronisation point, but this stream synchronises at the end of each section");
  mode_ = Mode::per_flush;
  flushed_ = true;
  return meet();
}

// The source wrote every SYNC before the mark (multifd.md 8.2), so they are on their way, behind pages perhaps. While
// bytes still come it may take as long as it takes.
Result<void> MultifdReceiver::meet() {
  std::uint64_t before = bytes_received();
  for (unsigned quiet = 0; quiet < barrier_looks; ++quiet) {
    MD_TRY(const bool met, barrier_->meet(barrier_patience_ / barrier_looks));
    if (met) return {};
    const std::uint64_t now = bytes_received();
    if (now != before) quiet = 0;
    before = now;
  }
  return barrier_->nobody_came(barrier_patience_);
}

void MultifdReceiver::begin_last_section() {
  last_section_ = true;
  barrier_->begin_last_section();
}

Result<void> MultifdReceiver::at_end_of_section() {
  if (mode_ == Mode::unknown) mode_ = Mode::per_section;
  if (mode_ == Mode::per_section) MD_CHECK(meet());
  if (!last_section_) {
    flushed_ = false;
    return {};
  }
  if (mode_ == Mode::per_flush && !flushed_)
    return wire_error("the last part of the memory ends without a multifd synchronisation point");
  return barrier_->close();
}

std::uint64_t MultifdReceiver::bytes_received() const noexcept {
  std::uint64_t total = 0;
  for (const auto& worker : workers_) total += worker->bytes();
  return total;
}

std::uint64_t MultifdReceiver::normal_pages() const noexcept { return total_of(workers_, &Worker::normal_pages); }
std::uint64_t MultifdReceiver::zero_pages() const noexcept { return total_of(workers_, &Worker::zero_pages); }

}  // namespace migrationd::ram
