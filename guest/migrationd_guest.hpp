// SPDX-License-Identifier: Apache-2.0
//
// AttachedGuest: migrationd_guest.h for C++. RAII, callbacks as std::function, devices by the VMState library's own
// tables (vmstate/description.hpp; pkg-config migrationd-guest migrationd-vmstate).
//
//     AttachedGuest::Callbacks callbacks;
//     callbacks.stop = [&] { return engine.pause(); };
//     auto guest = AttachedGuest::make("my-machine-1", std::move(callbacks));
//     guest->new_block("ram", 64 << 20);
//     guest->add_device(clock_description, clock);
//     guest->attach("/run/migrationd/NAME/guest.sock", MD_RUNNING);
//
// Header only, over the C interface: what is said there of threads, deadlines and the daemon's death holds here. An
// exception in a callback is a refusal with its text.
//
// Errors: Result with the sentence of md_guest_error(), ErrorKind::machine.
#pragma once

#include "base/result.hpp"
#include "guest/migrationd_guest.h"
#include "vmstate/engine.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace migrationd {

class AttachedGuest {
 public:
  // Each may be empty; the defaults are those of md_callbacks.
  struct Callbacks {
    std::function<Result<void>()> stop;
    std::function<Result<void>()> start;
    std::function<void(unsigned percent)> throttle;
    std::function<Result<void>(bool on)> dirty_log;
    std::function<Result<void>()> dirty_sync;
    std::function<void(md_event event, std::string_view why)> event;
  };

  static Result<AttachedGuest> make(const std::string& machine_name, Callbacks callbacks) {
    AttachedGuest out;
    out.shared_->callbacks = std::move(callbacks);
    const md_callbacks table = callbacks_of(out.shared_->callbacks);
    out.guest_.reset(md_guest_new(machine_name.c_str(), &table, out.shared_.get()));
    if (!out.guest_) return failure();
    out.shared_->guest = out.guest_.get();
    return out;
  }

  md_guest* get() const noexcept { return guest_.get(); }

  // The block's memory.
  Result<std::byte*> new_block(const std::string& name, std::uint64_t length, std::uint32_t page_size = 4096,
                               md_tracking tracking = MD_TRACK_WRITE_PROTECT) {
    void* const address = md_guest_new_block(get(), name.c_str(), length, page_size, tracking);
    if (address == nullptr) return failure();
    return static_cast<std::byte*>(address);
  }
  Result<void> add_block(const std::string& name, void* address, std::uint64_t length, int fd,
                         md_tracking tracking = MD_TRACK_WRITE_PROTECT) {
    return checked(md_guest_add_block(get(), name.c_str(), address, length, fd, tracking));
  }
  // Punched out and told.
  Result<void> give_back(const std::string& name, std::uint64_t offset, std::uint64_t length) {
    return checked(md_guest_give_back(get(), name.c_str(), offset, length));
  }

  // `table` and `object` outlive the guest.
  template <class T>
  Result<void> add_device(const vmstate::DescriptionOf<T>& table, T& object, const std::string& path = {},
                          std::optional<std::uint32_t> instance = {}) {
    shared_->devices.push_back({&table, &object, shared_.get()});
    const std::string name(table.name);
    md_opaque opaque{};
    opaque.size = sizeof opaque;
    opaque.name = name.c_str();
    opaque.version = table.version;
    opaque.minimum_version = table.minimum_version;
    opaque.unmigratable = table.unmigratable ? 1 : 0;
    opaque.early = table.early ? 1 : 0;
    opaque.save = &save_device;
    opaque.load = &load_device;
    if (table.needed != nullptr) opaque.needed = &device_needed;
    return checked(md_guest_add_opaque(get(), &opaque, &shared_->devices.back(), path.c_str(),
                                       instance.value_or(MD_ANY_INSTANCE)));
  }

  Result<void> attach(const std::string& socket_path, unsigned flags) {
    return checked(md_guest_attach(get(), socket_path.c_str(), flags));
  }
  Result<void> detach() { return checked(md_guest_detach(get())); }
  bool is_attached() const { return md_guest_is_attached(get()) != 0; }
  Result<int> add_blocker(const std::string& reason) {
    const int number = md_guest_add_blocker(get(), reason.c_str());
    if (number < 0) return failure();
    return number;
  }
  Result<void> delete_blocker(int number) { return checked(md_guest_delete_blocker(get(), number)); }

 private:
  struct Shared;
  struct Device {
    const vmstate::Description* table;
    void* object;
    Shared* shared;
  };
  // What callbacks refer to; stays where it is when the handle moves.
  struct Shared {
    Callbacks callbacks;
    std::deque<Device> devices;
    md_guest* guest = nullptr;
  };
  struct Free {
    void operator()(md_guest* guest) const noexcept { md_guest_free(guest); }
  };

  AttachedGuest() : shared_(std::make_unique<Shared>()) {}

  static Error failure() { return machine_error(md_guest_error(nullptr)); }
  static Result<void> checked(int status) {
    if (status != 0) return failure();
    return {};
  }

  // Runs `function`, which returns Result<void>; its error or exception becomes the refusal.
  template <class Function>
  static int answer(md_guest* guest, Function function) noexcept {
    try {
      const Result<void> result = function();
      return result ? 0 : md_guest_refuse(guest, result.error().text().c_str());
    } catch (const std::exception& thrown) {
      return md_guest_refuse(guest, thrown.what());
    } catch (...) {
      return md_guest_refuse(guest, "an exception without a text");
    }
  }
  template <class... Values>
  static int answer_by(void* user, const std::function<Result<void>(Values...)>& callback, Values... values) noexcept {
    return answer(static_cast<Shared*>(user)->guest, [&] { return callback(values...); });
  }

  static md_callbacks callbacks_of(const Callbacks& from) {
    md_callbacks out{};
    out.size = sizeof out;
    if (from.stop) out.stop = [](void* user) { return answer_by(user, static_cast<Shared*>(user)->callbacks.stop); };
    if (from.start) out.start = [](void* user) { return answer_by(user, static_cast<Shared*>(user)->callbacks.start); };
    if (from.dirty_log) {
      out.dirty_log = [](void* user, int on) {
        return answer_by(user, static_cast<Shared*>(user)->callbacks.dirty_log, on != 0);
      };
    }
    if (from.dirty_sync) {
      out.dirty_sync = [](void* user) { return answer_by(user, static_cast<Shared*>(user)->callbacks.dirty_sync); };
    }
    if (from.throttle) {
      out.throttle = [](void* user, unsigned percent) {
        answer(static_cast<Shared*>(user)->guest, [&]() -> Result<void> {
          static_cast<Shared*>(user)->callbacks.throttle(percent);
          return {};
        });
      };
    }
    if (from.event) {
      out.event = [](void* user, md_event event, const char* why) {
        answer(static_cast<Shared*>(user)->guest, [&]() -> Result<void> {
          static_cast<Shared*>(user)->callbacks.event(event, why);
          return {};
        });
      };
    }
    return out;
  }

  static int save_device(void* user, md_writer* writer) noexcept {
    const Device& device = *static_cast<Device*>(user);
    return answer(device.shared->guest, [&]() -> Result<void> {
      ByteWriter out;
      vmstate::Layout layout;
      MD_CHECK(vmstate::save_state(*device.table, device.object, out, &layout));
      md_write(writer, out.view().data(), out.size());
      md_describe(writer, vmstate::json_members(layout).c_str());
      return {};
    });
  }
  static int load_device(void* user, const void* bytes, std::size_t length, std::uint32_t version) noexcept {
    const Device& device = *static_cast<Device*>(user);
    return answer(device.shared->guest, [&]() -> Result<void> {
      ByteReader in(ByteView(static_cast<const std::byte*>(bytes), length));
      MD_CHECK(vmstate::load_state(*device.table, device.object, version, in));
      if (in.at_end()) return {};
      return wire_error(std::to_string(in.remaining()) + " bytes of its state are left over");
    });
  }
  static bool device_needed(const void* user) noexcept {
    const Device& device = *static_cast<const Device*>(user);
    return device.table->needed(device.object);
  }

  std::unique_ptr<Shared> shared_;
  std::unique_ptr<md_guest, Free> guest_;  // before shared_ in the end: no callback runs afterwards
};

}  // namespace migrationd
