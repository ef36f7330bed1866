#pragma once
// LogicalUnit: a block device as SPC-5 and SBC-4 describe it.
//
//   LogicalUnit   one a volume, shared by every guest that has it attached: mode pages, reservations, exclusive ranges.
//   Nexus         one a (guest, logical unit): unit attentions, write protection, reservation rights.
//   LunChannel    one a (nexus, reactor): where tasks are submitted and completed.
//
// The path of READ and WRITE takes no lock: what may refuse a nexus's commands (a unit attention,
// another's reservation, write protection) is one atomic word of the nexus, zero when there is nothing. Code
// that changes such state does so under the logical unit's mutex, which commands off that path hold briefly and never
// across I/O.

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "base/uuid.h"
#include "bdev/bdev.h"
#include "reactor/reactor.h"
#include "scsi/copy_results.h"
#include "scsi/task.h"

namespace pollux::scsi {

class Nexus;
class LunChannel;
class ExclusiveRanges;
class ModePages;
class Reservations;
class Settings;
struct ChannelAnchor;

// Keeps persistent reservations across restarts of the service, which guests must not notice; and across power losses
// of the host those for which APTPL was asked (SPC-5 5.14.5).
class ReservationStore {
 public:
  enum class Lasts : std::uint8_t { kUntilPowerLoss, kOverPowerLoss };
  virtual ~ReservationStore() = default;
  // What was saved last and has not lapsed; empty when there is nothing. Called when the logical unit is made, never on
  // a reactor.
  virtual Result<std::string> load(const Uuid& logical_unit) = 0;
  // Called on a reactor, must not block it. `done` once the state is durable or is not going to be; any thread, exactly
  // once. Saves of one logical unit take effect in the order of the calls. Empty state: forget.
  virtual void save(const Uuid& logical_unit, std::string state, Lasts lasts, std::function<void(Status)> done) = 0;
};

// Keeps what guests set on a logical unit, for as long as it is attached to them: see scsi/settings.h. `guest` is an
// initiator, or empty for what all of them share.
class SettingStore {
 public:
  using Lasts = ReservationStore::Lasts;
  virtual ~SettingStore() = default;
  // What was saved last and has not lapsed; empty when there is nothing. Never on a reactor.
  virtual Result<std::string> load(const Uuid& logical_unit, const std::string& guest) = 0;
  // Called on a reactor, must not block it. `done` as ReservationStore::save() has it, but never before this returns.
  virtual void save(const Uuid& logical_unit, const std::string& guest, std::string state, Lasts lasts,
                    std::function<void(Status)> done) = 0;
};

// SAM-5 5.14 and SPC-5 clause on unit attentions, most important first (the order in which they are reported).
enum class UnitAttention : std::uint8_t {
  kPowerOn,                   // 29h/00h
  kBusDeviceReset,            // 29h/03h: LOGICAL UNIT RESET
  kNexusLoss,                 // 29h/07h
  kReservationsReleased,      // 2Ah/04h
  kRegistrationsPreempted,    // 2Ah/05h
  kReservationsPreempted,     // 2Ah/03h
  kCommandsClearedByAnother,  // 2Fh/00h
  kModeParametersChanged,     // 2Ah/01h
  kCapacityChanged,           // 2Ah/09h
  kReportedLunsChanged,       // 3Fh/0Eh
};

struct LogicalUnitOptions {
  std::shared_ptr<bdev::Bdev> bdev;
  // Becomes the designators of VPD page 83h and the serial number of page 80h.
  Uuid uuid;
  // Left-aligned and cut to 8, 16 and 4 characters.
  std::string vendor = "POLLUX";
  std::string product = "VOLUME";
  std::string revision = "1.0";
  // May be null: PERSISTENT RESERVE OUT then refuses APTPL, and registrations end with the service.
  std::shared_ptr<ReservationStore> reservations;
  // May be null: what guests set then ends with the service.
  std::shared_ptr<SettingStore> settings;
};

// How a nexus is told the unit's names, which is what guests make their own names of: as those of this project, or as a
// disk of QEMU's has them whose serial number is the UUID.
enum class Names : std::uint8_t { kOwn, kQemu };

struct NexusOptions {
  // Names the guest; the same name is the same initiator to persistent reservations, also after a restart. Printable
  // ASCII without spaces or commas, 1 to 160 characters.
  std::string initiator;
  std::uint16_t relative_target_port = 1;
  // Write protection for this guest alone; a read-only device is so for all.
  bool read_only = false;
  // False when the guest goes on where it was, after a restart of the service: it then gets no 29h/00h.
  bool announce_power_on = true;
  Names names = Names::kOwn;
};

class LogicalUnit : public std::enable_shared_from_this<LogicalUnit> {
 public:
  // kInvalid: no device, or one whose block size is neither 512 nor 4096; errors of bdev::check_stack() and of the
  // stores' load().
  static Result<std::shared_ptr<LogicalUnit>> make(LogicalUnitOptions options);
  ~LogicalUnit();
  LogicalUnit(const LogicalUnit&) = delete;
  LogicalUnit& operator=(const LogicalUnit&) = delete;

  // Any thread but a reactor. kInvalid: a bad name; kExists: this initiator has a nexus through the same port already;
  // errors of SettingStore::load.
  // Dropping the last reference to the Nexus ends it.
  Result<std::shared_ptr<Nexus>> join(NexusOptions options);

  // Any thread. For every nexus but `except`.
  void raise_all(UnitAttention attention, const Nexus* except = nullptr);

  const LogicalUnitOptions& options() const { return options_; }
  bdev::Bdev& bdev() const { return *options_.bdev; }
  std::uint32_t block_bytes() const { return block_bytes_; }
  std::uint32_t block_shift() const { return block_shift_; }
  // Any thread; follows the device when that grows.
  std::uint64_t size_blocks() const { return size_blocks_.load(std::memory_order_acquire); }
  const std::string& serial() const { return serial_; }

  // For the commands of this room.
  ModePages& mode_pages() { return *mode_pages_; }
  Reservations& reservations() { return *reservations_; }
  Settings& settings() { return *settings_; }
  ExclusiveRanges& exclusive_ranges() { return *exclusive_ranges_; }
  std::mutex& mutex() { return mutex_; }
  // Under mutex(). The nexuses of now.
  const std::vector<Nexus*>& nexuses() const { return nexuses_; }
  // Under mutex(). Recomputes what every nexus may do, after reservations or write protection changed.
  void update_gates();

 private:
  friend class Nexus;
  explicit LogicalUnit(LogicalUnitOptions options);
  void leave(Nexus& nexus);
  void resized(std::uint64_t size_bytes);

  LogicalUnitOptions options_;
  std::uint32_t block_bytes_ = 0;
  std::uint32_t block_shift_ = 0;
  std::string serial_;
  std::atomic<std::uint64_t> size_blocks_{0};
  std::mutex mutex_;
  std::vector<Nexus*> nexuses_;
  std::unique_ptr<ModePages> mode_pages_;
  std::unique_ptr<Reservations> reservations_;
  std::unique_ptr<Settings> settings_;
  std::unique_ptr<ExclusiveRanges> exclusive_ranges_;
  bdev::Bdev::ResizeToken resize_token_;
};

// One LogicalUnit a volume for the whole process: guests that share a volume must meet in one.
class LogicalUnits {
 public:
  // The living one with this UUID, else a new one. Any thread but a reactor. Errors of LogicalUnit::make; kExists when
  // the living one stands on another device.
  Result<std::shared_ptr<LogicalUnit>> get(LogicalUnitOptions options);

 private:
  std::mutex mutex_;
  std::unordered_map<Uuid, std::weak_ptr<LogicalUnit>> units_;
};

class Nexus : public std::enable_shared_from_this<Nexus> {
 public:
  ~Nexus();
  Nexus(const Nexus&) = delete;
  Nexus& operator=(const Nexus&) = delete;

  // On the reactor that will use it. `device`: a channel of the unit's device that was opened there.
  std::unique_ptr<LunChannel> make_channel(reactor::Reactor& reactor, std::unique_ptr<bdev::Channel> device);

  // On any reactor; answers there. Reaches the tasks of all channels: those that have not begun end at once, those that
  // the device has already are awaited.
  void manage(TaskManagement& request);
  // Any thread. Functions under way, which keep the nexus and its unit.
  std::uint32_t managing() const { return managing_.load(std::memory_order_acquire); }
  // For this room: the function has ended.
  void managed(TaskManagement& request, TaskFunctionResponse response);

  // Any thread. The nexus's next command (but INQUIRY, REPORT LUNS, REQUEST SENSE) ends with it.
  void raise(UnitAttention attention);

  LogicalUnit& unit() const { return *unit_; }
  const NexusOptions& options() const { return options_; }
  // Under the unit's mutex.
  const std::vector<std::shared_ptr<ChannelAnchor>>& channels() const { return channels_; }

  // Under the unit's mutex.
  CopyResults& copy_results() { return copy_results_; }

  // What stands in the way of this nexus's commands; 0: nothing.
  enum Gate : std::uint32_t {
    kGateAttention = 1u << 0,     // a unit attention waits
    kGateWriteProtect = 1u << 1,  // read-only nexus, device, or the SWP bit of the control mode page
    kGateReservation = 1u << 2,   // another nexus's reservation: ask the commands' own rules
  };
  std::uint32_t gate() const { return gate_.load(std::memory_order_acquire); }
  // The most important waiting unit attention, taken off. False: there is none.
  bool pop_attention(UnitAttention& attention);

 private:
  friend class LogicalUnit;
  friend class LunChannel;
  Nexus(std::shared_ptr<LogicalUnit> unit, NexusOptions options);
  void set_gate(std::uint32_t bit, bool on);

  std::shared_ptr<LogicalUnit> unit_;
  NexusOptions options_;
  std::atomic<std::uint32_t> gate_{0};
  std::atomic<std::uint32_t> attentions_{0};
  std::atomic<std::uint32_t> managing_{0};
  CopyResults copy_results_;
  std::vector<std::shared_ptr<ChannelAnchor>> channels_;  // under the unit's mutex
};

}  // namespace pollux::scsi
